# `make demo` and `make test` work in a fresh clone with Python 3.11 or newer; `make help` lists the rest.
PYTHON ?= python3
BIN := .venv/bin
ifeq ($(origin FEDSIM_DATA),undefined)
ifneq ($(wildcard ../shared/data),)
export FEDSIM_DATA := $(abspath ../shared/data)
endif
endif

.PHONY: help demo test proof format clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

demo: .venv/installed  ## a private federated run on real data, within a minute
	@$(BIN)/fedsim run quickstart

# import-linter keeps no cache: it would miss modules made after the file that imports them.
test: .venv/installed-test  ## the whole check: style, types, imports between rooms, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/pytest

proof: .venv/installed-test  ## tests that take minutes
	$(BIN)/pytest -m proof

format: .venv/installed-test  ## write files the way `make test` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove everything that can be made again, except runs/
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# A stamp is newer than pyproject.toml when what it asks for is installed. What `make test` needs includes what
# `make demo` needs, so after it both stamps are made.
.venv/installed: pyproject.toml | .venv/bin/python
	@echo "Installing fedsim and what it needs into .venv (a few minutes, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/installed-test: pyproject.toml | .venv/bin/python
	@echo "Installing fedsim, what it needs and what tests it into .venv (a few minutes, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	@touch .venv/installed $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fedsim needs Python 3.11 or newer: make PYTHON=...")'
	@$(PYTHON) -m venv .venv
