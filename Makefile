# Every target sets up what it needs: Python 3.11 and make are enough on a fresh machine.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
GPU_PYTHON ?= python3
# One thread for each worker: two each on two cores spend most of the time waiting for one another.
TESTS  := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup

PEERS  := .bench/peers
BENCHMARKS := pretrain sft reward_model ppo generation loss attention validation zero

.PHONY: help demo paper test check traps resume drill test-all bench gpu clean
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

demo: $(VENV)/.installed  ## the sandbox from raw text to RLHF-V5, ten to eleven minutes on 2 cores
	$(BIN)/rlhf demo

paper: $(VENV)/.installed  ## the paper's findings in miniature, report/index.html; QUICK=1: one seed, smaller
	$(BIN)/python -m paper $(if $(QUICK),--quick)

check: $(VENV)/.installed-dev  ## style, types and the layers of the packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright

test: check  ## check, then the default tests, 6 to 12 minutes on 2 cores
	$(TESTS) -m "not slow and not gpu"

traps: $(VENV)/.installed-dev  ## the published suite: what breaks RLHF code, and that it holds here
	$(BIN)/pytest tests/traps -m "not slow" -q -r fE

resume: $(VENV)/.installed  ## the resume matrix: four training stages killed in eight ways, minutes
	$(BIN)/python tests/traps/resuming/matrix.py

drill: $(VENV)/.installed-dev  ## faults and operations against real servers, on SQLite and Postgres: a table
	$(BIN)/python tests/whole_loop/drill/table.py $(DRILL)

test-all: check  ## every test that needs no GPU, the long ones too
	$(TESTS) -m "not gpu"

$(PEERS)/%/.installed: benchmarks/requirements-%.txt | $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target $(@D) -r $<
	@touch $@

bench: $(PEERS)/trl-1.16/.installed $(PEERS)/trl-1.12/.installed  ## speed against TRL and Hugging Face, 25 quiet minutes on 2 cores
	rm -rf .bench/outcomes
	@for name in $(BENCHMARKS); do \
		$(BIN)/python -m benchmarks.$$name --save .bench/outcomes || exit $$?; done
	$(BIN)/python -m benchmarks.report .bench/outcomes > benchmarks/RESULTS.md

gpu:  ## on a GPU: kernels right in bf16, how fast, the traps that need one; needs torch, triton, jaxtyping
	$(GPU_PYTHON) -m benchmarks.gpu --output gpu.json
	@if $(GPU_PYTHON) -c "import pytest, deepspeed, pydantic" 2>/dev/null; then \
		OMP_NUM_THREADS=1 $(GPU_PYTHON) -m pytest -m gpu -q -r fE \
			tests/kernels tests/traps tests/stages tests/flows/capacity; \
	else echo "The tests marked gpu were not run: $(GPU_PYTHON) lacks this project's environment."; fi

clean:  ## forget the environment and the demo's results
	rm -rf $(VENV) .bench rlhf_home rlhf_paper report
