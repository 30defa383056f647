# From nothing: `make demo` builds and runs two artifacts of a real model; `make test`, `make lint`, `make types` check the code.
# Each makes its environment, .venv, when it isn't there.

PYTHON ?= python3.11
JOBS ?= 2
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
EXTRAS := build,openvino,onnxruntime,dev
# A strict editable install links every file there is: a folder's time changes when a file is added or removed.
FOLDERS := $(shell find src models export optimize runtimes -type d -not -name __pycache__)

.PHONY: help env test lint types demo clean-demo peers bench
.NOTPARALLEL:

help:
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' Makefile

env: .venv/.editable ## .venv with alize installed, editable

.venv/.packages: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install -qq --constraint constraints.txt torch==2.13.0 setuptools
	$(PIP) install -qq --constraint constraints.txt --no-build-isolation -C editable_mode=strict --editable '.[$(EXTRAS)]'
	touch $@

.venv/.editable: .venv/.packages $(FOLDERS)
	$(PIP) install -qq --no-deps --no-build-isolation -C editable_mode=strict --editable .
	touch $@

test: env ## the whole test suite
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

lint: env ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env ## mypy, strict
	$(BIN)/mypy -p alize

demo: demo/openvino/manifest.json demo/onnxruntime/manifest.json ## two sealed artifacts of a real 135M model, and its answer
	$(BIN)/alize inspect demo/openvino
	$(BIN)/alize inspect demo/onnxruntime
	$(BIN)/alize run --chat demo/openvino --max-new-tokens 120 "What is a trade wind, and why did sailors like it?"

demo/model/config.json: | env
	$(BIN)/alize demo-model demo/model

demo/%/manifest.json: demo/model/config.json
	$(BIN)/alize build demo/model --target $* --output demo/$* > /dev/null # what it prints at the end, `inspect` prints again

peers: ## what users would pick instead, in environments of their own (4 GB, llama.cpp is compiled)
	PYTHON=$(PYTHON) JOBS=$(JOBS) benchmarks/peers/install

# BENCH: options of both, as --models demo-int8, --work FOLDER
bench: env peers ## alize beside them, alternately in one run: benchmarks/results/bench-*.json (see docs/benchmarks.md)
	$(BIN)/python -m benchmarks.bench --prepare $(BENCH)
	$(BIN)/python -m benchmarks.bench $(BENCH)

clean-demo: ## forget the demo, so that `make demo` builds it again
	rm -rf demo
