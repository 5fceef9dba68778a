# Café au Lait. Every target does its whole set-up itself, in .venv; a set-up that was interrupted is simply run again.
#
#   make run      the console, on http://127.0.0.1:8501
#   make demo     the demo federation in the terminal, to its adapter
#   make test     all tests but the long loops; installs a browser and a message broker when it may
#   make check    the quick tests: no browser, no models, no whole runs; under three minutes on two cores
#   make soak     the long loops
#   make screenshots  pictures of every page in every state, into screenshots/ (git does not see it)
#   make lint     ruff and mypy;  make format mends, and rewrites what docs/ holds of the program
#   make clean    removes .venv and what tools left behind; never runs or models (cafe clean does)
#
# PYTHON=python3.12 chooses the interpreter. TORCH=cpu takes PyTorch's CPU wheels instead of the package index's default.

SHELL := /bin/bash
PYTHON ?= python3
TORCH ?=
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
QUICK := not heavy and not system and not soak

.PHONY: run demo test check soak screenshots lint format clean install system

run: install
	$(BIN)/cafe serve

demo: install
	$(BIN)/python -m pipeline.models
	$(BIN)/cafe demo

test: install system
	OMP_NUM_THREADS=1 $(PYTEST) -n 2 -m "$(QUICK)"
	@$(BIN)/python -m pipeline.models || echo "Left out: the tests of the real models, for the reason above"
	$(PYTEST) -m "(heavy or system) and not soak"

check: install
	OMP_NUM_THREADS=1 $(PYTEST) -q -n 2 -m "$(QUICK) and not runs"

soak: install
	$(BIN)/python -m pipeline.models
	$(PYTEST) -m soak

screenshots: install system
	$(BIN)/python -m tests.screenshots screenshots

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/python -m pipeline.reference
	$(BIN)/python -m pipeline.rooms
	$(BIN)/python -m pipeline.error_pages

install:
	@$(PYTHON) -m pipeline.environment $(TORCH)

system:
	@tests/system_packages.sh

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info client_kits/*.egg-info screenshots
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
