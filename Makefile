# `make help` lists what there is. Another Python: make install PYTHON=python3.12

SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
PYTEST_FLAGS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test lint clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s  %s\n", $$1, $$2}' Makefile

install: $(STAMP)  ## make .venv and install rerank with all that the checks need

# The stamp is younger than what it was made from, so nothing is installed twice.
$(STAMP): pyproject.toml constraints.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "rerank needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1 | tail -1);" \
	      "name another one: make install PYTHON=python3.12" >&2; exit 1; }; \
	  echo "== making $(VENV) with $$($(PYTHON) -V)"; \
	  $(PYTHON) -m venv $(VENV); \
	fi
	@echo "== installing rerank, torch and the development tools into $(VENV) (minutes, the first time)"
	@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[llm,dev]' \
	  | sed -nE 's/^ *(Downloading [^ ]+ \([0-9]{2,}[.0-9]* MB\)).*/   \1/p; s/^(Installing) collected.*/   \1 .../p'
	@touch $@
	@echo "== installed: $(BIN)/rerank"

demo: install  ## rank a small real collection with the embedded model
	@$(BIN)/rerank demo

lint: install  ## ruff and mypy
	@echo "== ruff check"
	@$(BIN)/ruff check .
	@echo "== ruff format --check"
	@$(BIN)/ruff format --check .
	@echo "== mypy"
	@$(BIN)/mypy

test: lint  ## all checks: ruff, mypy, the tests, the packages as a user gets them
	@echo "== pytest"
	@$(BIN)/python -m pytest $(PYTEST_FLAGS)

clean:  ## remove .venv and everything that the checks left
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find rerank losses eval data tests -name __pycache__ -type d -prune -exec rm -rf {} +
