# deployml. `make` lists what there is; everything runs in the environment that `make venv` creates.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.ONESHELL:

PYTHON ?= python3
VENV ?= .venv
# Which onnxruntime: the GPU build also runs on the CPU; ONNXRUNTIME=onnxruntime is a quarter of its size.
ONNXRUNTIME ?=
OUT ?= out
# Tests that run side by side; each worker holds torch and onnxruntime, 2 GB.
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 1); echo $$((n < 4 ? n : 4)))

BIN := $(VENV)/bin
PACKAGES := exporter passes custom_ops runtime
# An editable install knows the files it was made from: a new or removed one makes a new stamp.
FILES := $(shell find $(PACKAGES) -name '*.py' -not -path '*/__pycache__/*' | LC_ALL=C sort | cksum | cut -d' ' -f1)
NATIVE := $(shell find custom_ops -name CMakeLists.txt -o -name '*.cmake' -o -name '*.cc' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name '*.map')
STAMP := $(VENV)/.installed-$(FILES)
# Temporary folders of its own: pytest sessions that run at the same time clear away each other's old ones.
PYTEST = folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	PYTEST_DEBUG_TEMPROOT=$$folder $(BIN)/python -m pytest -c tests/pytest.ini --rootdir tests -n $(JOBS) --dist worksteal

.PHONY: help
help: ## list the goals
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: venv
venv: $(STAMP) ## create .venv and install deployml into it (ONNXRUNTIME=onnxruntime: no CUDA)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "deployml needs Python 3.11 or newer; give one with PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "cannot create an environment; on Debian: apt-get install python3-venv" >&2; exit 2; }

$(STAMP): $(BIN)/python pyproject.toml constraints.txt $(NATIVE)
	@echo "installing deployml and what it needs into $(VENV); the first time takes a few minutes"
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[test]'
	if [[ -n "$(ONNXRUNTIME)" ]]; then
	  $(BIN)/python -m pip uninstall -qq -y onnxruntime-gpu onnxruntime
	  $(BIN)/python -m pip install -qq -c constraints.txt $(ONNXRUNTIME)
	fi
	# The editable install also puts the folder above the checkout on the import path, for type checkers. Not wanted.
	sed -i '/^import /!d' $(VENV)/lib/python3.*/site-packages/_editable_skbc_deployml.pth
	rm -f $(VENV)/.installed-*
	touch $@

.PHONY: demo
demo: $(STAMP) ## export a real sentence encoder, fused and proven, and print what happened
	$(BIN)/python -m deployml.exporter.demo $(OUT)/demo

.PHONY: test
test: $(STAMP) ## run the everyday tests
	$(PYTEST) tests -m 'not slow' $(ARGS)

.PHONY: test-all
test-all: $(STAMP) ## run all tests, the long ones too
	$(PYTEST) tests $(ARGS)

.PHONY: fuzz
fuzz: $(STAMP) ## compare random attention modules with eager for SECONDS (600) from SEED (1)
	$(BIN)/python -m tests.property.fuzz --seconds $(or $(SECONDS),600) --seed $(or $(SEED),1) $(ARGS)

.PHONY: fuzz-files
fuzz-files: $(STAMP) ## hand mutated files to the loaders for SECONDS (600) from SEED (1)
	$(BIN)/python -m tests.faults.fuzz --seconds $(or $(SECONDS),600) --seed $(or $(SEED),1) $(ARGS)

.PHONY: matrix
matrix: $(STAMP) ## run the golden models under other versions and write docs/compatibility.md (needs the network)
	$(BIN)/python -m tests.golden.matrix $(ARGS)

.PHONY: zoo
zoo: $(STAMP) ## export every model of the zoo, fused, and compare each with eager (half an hour)
	$(PYTEST) tests/zoo -m zoo $(ARGS)

.PHONY: lint
lint: $(STAMP) ## check style and layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .

.PHONY: docs
docs: $(STAMP) ## write the generated pages under docs/ anew
	$(BIN)/python -m deployml.passes.pages docs

.PHONY: wheel
wheel: ## build a manylinux wheel with the CPU operators into OUT/wheels (CUDA=1: the CUDA ones too)
	PYTHON=$(PYTHON) CUDA=$(CUDA) .ci/wheel $(OUT)/wheels

.PHONY: clean
clean: ## remove what the goals made, .venv too
	rm -rf $(VENV) $(OUT) build dist
