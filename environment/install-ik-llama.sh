#!/bin/sh
# Builds ik_llama.cpp for this very processor into the environment whose Python is $1. Its wheel is made for any processor, without
# VNNI; its source archive lacks a file of cmake, which is written here.
set -eu
python=$1 version=$2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m pip --disable-pip-version-check download --quiet --no-deps --no-binary ik-llama-cpp-python \
  --dest "$scratch" "ik-llama-cpp-python==$version"
tar -xzf "$scratch"/*.tar.gz -C "$scratch"
source=$(echo "$scratch"/ik_llama_cpp_python-*/)
common=$source/vendor/ik_llama.cpp/common
mkdir -p "$common/cmake"
cat > "$common/cmake/build-info-gen-cpp.cmake" <<'CMAKE'
set(BUILD_NUMBER 0)
set(BUILD_COMMIT unknown)
set(BUILD_COMPILER "${CMAKE_C_COMPILER_ID} ${CMAKE_C_COMPILER_VERSION}")
set(BUILD_TARGET native)
configure_file(common/build-info.cpp.in common/build-info.cpp)
CMAKE
CMAKE_ARGS='-DGGML_NATIVE=ON -DGGML_IQK_FA_ALL_QUANTS=OFF' \
  "$python" -m pip --disable-pip-version-check install --quiet "$source"
