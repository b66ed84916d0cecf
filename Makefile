# `make demo` and `make test` need Linux (x86-64), Python 3.11, make and a C++ compiler; everything else comes
# from the lock file. Set UV_FIND_LINKS or PIP_FIND_LINKS where a local folder holds the CPU build of torch.

SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
LINKS := $(or $(UV_FIND_LINKS),$(PIP_FIND_LINKS))
# The CPU build of torch is not on the package index: a folder of wheels, or else PyTorch's own index.
TORCH := $(if $(LINKS),--find-links $(LINKS),--torch-backend cpu)
PRESET ?= tiny
# So many processes run the tests, each of them one thread (WORKERS=0: in one process, as a debugger needs it).
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

# DeepSpeed builds one small C++ operator at first use and looks for ninja on the path.
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: help demo env compiler test test-slow test-gpu lint types unit integration bench lock docs clean

help:  ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: env  ## install, then run the whole pipeline with preset tiny (nine to seventeen minutes)
	$(BIN)/vlm-r3 run --preset $(PRESET)

env: compiler $(VENV)/.ok  ## install the locked environment into .venv

compiler:
	@command -v "$${CXX:-g++}" >/dev/null || { echo "A C++ compiler is missing (DeepSpeed builds one operator" \
	  "at first use). Install g++, for example: apt-get install g++; or set CXX." >&2; exit 2; }

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { echo "$(PYTHON) is" \
	  "not Python 3.11, which this project needs. Install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q "$$(grep '^uv==' requirements/cpu.lock)"

# Compiled once: where Python writes no bytecode (PYTHONDONTWRITEBYTECODE), every process would spend seconds
# on compiling torch, vLLM and DeepSpeed again.
$(VENV)/.ok: requirements/cpu.lock pyproject.toml | $(UV)
	$(UV) pip sync -q --compile-bytecode --python $(BIN)/python $(TORCH) requirements/cpu.lock
	$(UV) pip install -q --no-deps --no-build-isolation --python $(BIN)/python -e .
	@touch $@

test: env lint types  ## every check and every test but the slow ones
	$(PYTEST) tests -m "not slow and not gpu"

test-slow: env  ## the tests that take minutes
	$(BIN)/python -m pytest -q tests -m "slow and not gpu"

test-gpu:  ## the tests that need a GPU, in an environment of requirements/gpu.lock (VENV=/opt/venv in the image)
	$(BIN)/python -m pytest -q -s tests/gpu

lint: env  ## format, lint, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: env  ## static types
	$(BIN)/mypy

unit: env  ## the unit tests only (under a minute)
	$(PYTEST) tests/unit

integration: env  ## the integration tests only
	$(PYTEST) tests/integration -m "not slow and not gpu"

bench: env  ## measure speed (tests/benchmarks/), one JSON file each into .vlm-r3/bench
	status=0; for file in tests/benchmarks/*.py; do \
	  $(BIN)/python -m tests.benchmarks.$$(basename $$file .py) || status=1; done; exit $$status

docs: env  ## the reference of every module from its docstrings, in docs/api/
	$(BIN)/python -m pdoc -d google -o docs/api models tasks flows

COMPILE := $(UV) pip compile -q pyproject.toml --extra dev --extra services --extra kubernetes --no-emit-find-links --python-version 3.11 \
	--python-platform x86_64-manylinux_2_28

lock: | $(UV)  ## resolve the lock files again (set UPGRADE=1 to move to newer versions)
	$(COMPILE) $(if $(UPGRADE),--upgrade) --extra cpu $(TORCH) -o requirements/cpu.lock
	$(COMPILE) $(if $(UPGRADE),--upgrade) --extra gpu -o requirements/gpu.lock
	$(UV) pip compile -q requirements/services.in -c requirements/gpu.lock --generate-hashes --no-emit-find-links \
		--python-version 3.11 --python-platform x86_64-manylinux_2_28 -o requirements/services.lock

clean:  ## remove the environment, caches and the work directory of runs
	rm -rf $(VENV) .vlm-r3 .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find flows tasks models tests -name __pycache__ -prune -exec rm -rf {} +
