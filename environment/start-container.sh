#!/usr/bin/env bash
# Start the container with the NPUs of this host.
#
#   environment/start-container.sh [OPTIONS] [COMMAND...]
#
#   --image NAME      image to start (default: telechat-kit, or $IMAGE)
#   --devices LIST    chips to hand in: numbers of /dev/davinciN, as 0,1 (default: all of them)
#   --models FOLDER   checkpoints, seen as models/ inside (default: models)
#   --results FOLDER  results, seen as results/ inside (default: results)
#   --runtime         let the Ascend Docker Runtime hand in devices and driver; it must be installed
#   --print           print the command, one argument a line, and start nothing
#   --help            this text
#
# COMMAND: default is the image's own, `telechat-kit check`. Also read: $CONTAINER, docker or podman.
#
#   environment/start-container.sh
#   environment/start-container.sh --devices 0 telechat-kit run params/telechat-7b-310p.yaml
set -euo pipefail

image=${IMAGE:-telechat-kit}
devices=
models=models
results=results
runtime=
print=

fail() {
    echo "Error: $1" >&2
    exit 2
}

needs_value() {
    [ "$1" -gt 1 ] || fail "$2 needs a value; see --help."
}

while [ $# -gt 0 ]; do
    case $1 in
        --image) needs_value $# "$1"; image=$2; shift 2 ;;
        --devices) needs_value $# "$1"; devices=$2; shift 2 ;;
        --models) needs_value $# "$1"; models=$2; shift 2 ;;
        --results) needs_value $# "$1"; results=$2; shift 2 ;;
        --runtime) runtime=yes; shift ;;
        --print) print=yes; shift ;;
        --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
        --) shift; break ;;
        -*) fail "unknown option $1; see --help." ;;
        *) break ;;
    esac
done

if [ -z "$devices" ]; then
    for node in /dev/davinci[0-9]*; do
        if [ -e "$node" ]; then
            devices="$devices${devices:+,}${node#/dev/davinci}"
        fi
    done
fi
[ -n "$devices" ] || fail "no /dev/davinciN on this host: install the driver (docs/ascend-setup.md, step 1), or name --devices."
[[ $devices =~ ^[0-9]+(,[0-9]+)*$ ]] || fail "--devices $devices is no list of numbers such as 0,1."

# several processes of one run share memory, more than the 64 MB that a container gets
arguments=(run --rm --shm-size 16g)
if [ -t 0 ]; then
    arguments+=(--interactive --tty)
fi

if [ -n "$runtime" ]; then
    arguments+=(--runtime ascend --env "ASCEND_VISIBLE_DEVICES=$devices")
else
    for number in ${devices//,/ }; do
        arguments+=(--device "/dev/davinci$number")
    done
    for node in davinci_manager devmm_svm hisi_hdc; do
        arguments+=(--device "/dev/$node")
    done
    smi=$(command -v npu-smi || echo /usr/local/bin/npu-smi)
    # not the whole driver folder: with it, and without dcmi, npu-smi fails with "device is used, ret is -8020"
    for path in /usr/local/dcmi /usr/local/Ascend/driver/lib64 /usr/local/Ascend/driver/version.info \
        /etc/ascend_install.info; do
        arguments+=(--volume "$path:$path:ro")
    done
    arguments+=(--volume "$smi:/usr/local/bin/npu-smi:ro")
fi
[ -n "$print" ] || mkdir -p "$models" "$results"
arguments+=(--volume "$(realpath -m "$models"):/opt/telechat-kit/models")
arguments+=(--volume "$(realpath -m "$results"):/opt/telechat-kit/results")
arguments+=("$image" "$@")

if [ -n "$print" ]; then
    printf '%s\n' "${CONTAINER:-docker}" "${arguments[@]}"
else
    exec "${CONTAINER:-docker}" "${arguments[@]}"
fi
