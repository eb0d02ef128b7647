# Every target sets up what it needs: Python 3.11 and make are enough on a fresh machine.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
GPU_PYTHON ?= python3

.PHONY: help demo test check traps test-all gpu clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/: .*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed  ## the sandbox from raw text to RLHF-V2, five to ten minutes on 2 cores
	$(BIN)/rlhf demo

check: $(VENV)/.installed-dev  ## style, types and the layers of the packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright

test: check  ## check, then the default tests, under 12 minutes on 2 cores
	$(BIN)/pytest -n 2 -m "not slow and not gpu"

traps: $(VENV)/.installed-dev  ## the published suite: what breaks RLHF code, and that it holds here
	$(BIN)/pytest tests/traps -m "not gpu" -v

test-all: check  ## every test that needs no GPU, the long ones too
	$(BIN)/pytest -n 2 -m "not gpu"

gpu:  ## the kernels on a GPU: right in bf16, how fast; needs a python3 with torch, triton, jaxtyping
	$(GPU_PYTHON) -m benchmarks.gpu --output gpu.json

clean:  ## forget the environment and the demo's results
	rm -rf $(VENV) rlhf_home
