# Dipole's daily commands. Every target sets up .venv by itself; `make` alone lists them.
#
#   PYTHON=python3.12    the interpreter that .venv is made with (3.10 or newer)
#   GPU=1                CUDA builds of torch and FAISS; remembered by .venv until GPU=0
#   TORCH_INDEX=URL      package index to take torch from, such as one that serves CPU-only builds
#   QUICKSTART_OUT=DIR   run folder of `make quickstart`
#   ARGS='…'             handed on to dipole, pytest or the benchmarks

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
QUICKSTART_OUT ?= runs/quickstart
TORCH_INDEX ?=
ARGS ?=
SEEDS ?= 1

# Pinned, and installed before all else: left to a range, pip takes the newest CUDA build, gigabytes on any machine.
TORCH := torch==2.13.0

# Without GPU= the environment stays what it is, so that a plain `make test` never undoes a `make setup GPU=1`.
GPU ?= $(if $(wildcard $(VENV)/.setup-gpu),1,0)
KIND := $(if $(filter 1 yes true,$(GPU)),gpu,cpu)
OTHER_KIND := $(if $(filter gpu,$(KIND)),cpu,gpu)
SETUP := $(VENV)/.setup-$(KIND)

.PHONY: help setup quickstart test test-slow test-slurm test-chaos check format bench clean

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

setup: $(SETUP)  ## make .venv and install Dipole into it, with all that the other targets need

quickstart: $(SETUP)  ## the whole main job on this machine, in minutes, with no download
	@out="$(QUICKSTART_OUT)"; n=2; \
	while [ -e "$$out" ]; do out="$(QUICKSTART_OUT)-$$n"; n=$$((n + 1)); done; \
	exec $(BIN)/dipole quickstart --out "$$out" $(ARGS)

test: $(SETUP)  ## every test that is not slow and needs no cluster
	$(BIN)/python -m pytest -m "not slow and not cluster and not chaos" $(ARGS)

test-slow: $(SETUP)  ## the slow tests alone: long runs, many kills
	$(BIN)/python -m pytest -m slow $(ARGS) || [ $$? -eq 5 ]  # 5: there are none

test-slurm: $(SETUP)  ## a real two-node Slurm and a Ray cluster on this machine, as root (apt: slurm-wlm munge)
	$(BIN)/python -m pytest -m "cluster and not slow" tests/cluster $(ARGS)

test-chaos: $(SETUP)  ## kill storms over training and mining; SEEDS="1 2 3" are storms of their own
	SEEDS="$(SEEDS)" $(BIN)/python -m pytest -m chaos tests/chaos $(ARGS)

check: $(SETUP)  ## lint, format, types, floors: what CI holds every change to
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(SETUP)  ## let ruff mend what it can
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

bench: $(SETUP)  ## every benchmark, one after another
	@for benchmark in $(wildcard benchmarks/bench_*.py); do \
	  echo "== $$benchmark"; $(BIN)/python -m "benchmarks.$$(basename "$$benchmark" .py)" $(ARGS); \
	done

clean:  ## remove caches; .venv and runs/ stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The last thing written, and so the proof that the installation ran to its end; a changed pyproject.toml redoes it.
$(SETUP): pyproject.toml | $(BIN)/pip
	@if [ -e $(VENV)/.setup-$(OTHER_KIND) ]; then \
	  rm $(VENV)/.setup-$(OTHER_KIND); \
	  $(PIP) uninstall -q -y torch faiss-$(OTHER_KIND); \
	fi
	@echo "[1/2] $(TORCH) ($(KIND))"
	@$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)" </dev/null
	@echo "[2/2] Dipole with the extras $(KIND), deepspeed, test, dev: a few minutes where nothing is cached"
	@$(PIP) install -qq --no-warn-script-location -e ".[$(KIND),deepspeed,test,dev]" </dev/null
	@touch $@

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "Dipole needs Python 3.10 or newer, and there is no '$(PYTHON)'; name another with PYTHON=…" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "Dipole needs Python 3.10 or newer, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1); name another with PYTHON=…" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
