# The daily words.  `make demo` and `make test` do all of their own set-up on a fresh machine with
# Python >= 3.11 (with venv), git and make.
#
#   make demo        screen well-known crystals with the bundled model
#   make test        the default test suite
#   make check       ruff and mypy
#   make docs        the documentation as a web site, in site/
#   make bench       time against mace-torch's modules, on one thread
#   make bench-gpu   crystals per second in batches, where there is a GPU
#   make clean       remove what the other words made
#
# Optional: TORCH_INDEX=<url> takes torch from that wheel index (a CPU-only one saves gigabytes);
# PYTHON=<command> picks the interpreter; WORKERS=<n> the number of test processes; ARGS=... goes to pytest,
# the demo or the benchmark.  Settings of pip itself (pip.conf, PIP_* variables) are honored.

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
OMP_NUM_THREADS ?= 1
export OMP_NUM_THREADS

PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
INPUTS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test check docs bench bench-gpu clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.installed
	$(BIN)/fieldflows demo $(ARGS)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks $(ARGS)

bench-gpu: $(VENV)/.installed
	$(BIN)/python -m benchmarks gpu $(ARGS)

clean:
	rm -rf $(VENV) build dist site demo-output .pytest_cache .mypy_cache .ruff_cache *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; name another one: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo "$(PYTHON) lacks venv; on Debian: apt install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# torch first and alone where an index is named for it: nothing else shall come from there.
$(VENV)/.installed: $(INPUTS) | $(BIN)/python
	@echo "Installing fieldflows and its dependencies into $(VENV); this takes a few minutes ..."
	$(if $(TORCH_INDEX),$(PIP) --no-deps --index-url $(TORCH_INDEX) torch)
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	@echo "Installing what '$*' needs ..."
	$(PIP) --editable '.[$*]'
	@touch $@
