# Every target sets up what it needs in .venv on a fresh machine; a second call finds it ready.
#
#   make demo    phantom studies as real DICOM -> a trained model, its evidence and explanations, and a report
#   make test    every test, with coverage
#   make check   format, lint, types, direction of imports, docstring examples, documentation
#   make bench   the benchmarks: one script a claim
#   make fuzz    every reader against mutated files: 20,000 DICOM, 5,000 of each other format
#   make docs    the documentation site, in site/
#   make setup   everything that development needs

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# The first interpreter that is new enough; give your own with `make PYTHON=python3.13 ...`.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

DEVELOPMENT := $(VENV)/.ready-development
# What development needs holds all that the demo needs.
DEMO := $(if $(wildcard $(DEVELOPMENT)),$(DEVELOPMENT),$(VENV)/.ready-demo)

# Two workers with one thread each: a small convolution gains nothing from a second thread.
WORKERS ?= 2
THREADS := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
ARGS ?=

.PHONY: help setup demo test check bench fuzz docs clean

help:
	@sed -n '3,9s/^#  //p' Makefile

setup: $(DEVELOPMENT)

demo: $(DEMO)
	$(BIN)/sagittal demo --output demo --overwrite $(ARGS)

test: $(DEVELOPMENT)
	$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term --cov-report=xml $(ARGS)

check: $(DEVELOPMENT)
	$(BIN)/ruff format --check src tests docs benchmarks fuzz
	$(BIN)/ruff check src tests docs benchmarks fuzz
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(THREADS) $(BIN)/python -m pytest -q --doctest-modules src/sagittal
	$(THREADS) $(BIN)/python -m pytest -q tests/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: $(DEVELOPMENT)
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script" $(ARGS); done

fuzz: $(DEVELOPMENT)
	$(BIN)/python fuzz/run.py $(ARGS)

docs: $(DEVELOPMENT)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site .coverage coverage.xml .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Sagittal needs Python 3.11 or newer; name yours: make PYTHON=/path/to/python" >&2; exit 4; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready-demo: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[explain]'
	@touch $@

$(DEVELOPMENT): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[all,test,lint,docs,fuzz]'
	@touch $@
