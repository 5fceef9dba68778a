# Café au Lait. Every target does its whole set-up itself, in .venv; a set-up that was interrupted is simply run again.
#
#   make run      the console, on http://127.0.0.1:8501
#   make demo     the demo federation in the terminal, to its adapter
#   make test     all tests but the long loops; installs a browser when it may
#   make check    the quick tests: no browser, no models
#   make soak     the long loops
#   make lint     ruff and mypy;  make format puts the code into shape
#   make clean    removes .venv and what tools left behind; never runs or models (cafe clean does)
#
# PYTHON=python3.12 chooses the interpreter. TORCH=cpu takes PyTorch's CPU wheels instead of the package index's default.

SHELL := /bin/bash
PYTHON ?= python3
TORCH ?=
BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --retries 2
PYTEST := $(BIN)/python -m pytest
SYSTEM_PACKAGES := chromium
QUICK := not heavy and not system and not soak

.PHONY: run demo test check soak lint format clean install system
.DELETE_ON_ERROR:

run: $(STAMP)
	$(BIN)/cafe serve

demo: $(STAMP)
	$(BIN)/python -m pipeline.models
	$(BIN)/cafe demo

test: $(STAMP) system
	OMP_NUM_THREADS=1 $(PYTEST) -n 2 -m "$(QUICK)"
	$(BIN)/python -m pipeline.models
	$(PYTEST) -m "(heavy or system) and not soak"

check: $(STAMP)
	OMP_NUM_THREADS=1 $(PYTEST) -q -n 2 -m "$(QUICK)"

soak: $(STAMP)
	$(BIN)/python -m pipeline.models
	$(PYTEST) -m soak

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

install: $(STAMP)

# .unfinished stands while packages are written: whoever finds it starts from an empty folder, since pip cannot tell a
# half-written package from a whole one. Downloads are in pip's cache by then.
$(STAMP): requirements.txt pyproject.toml client_kits/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Café au Lait needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)" if sys.version_info < (3, 11) else 0)'
	@if [ -e .venv/.unfinished ]; then rm -rf .venv; fi
	@echo "Setting up .venv (once; a few minutes and about 3 GB)"
	@mkdir -p .venv && touch .venv/.unfinished
	@$(PYTHON) -m venv .venv || { echo "Python could not make .venv; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@{ $(if $(TORCH),$(PIP) install "$$(grep '^torch==' requirements.txt)" --index-url https://download.pytorch.org/whl/$(TORCH) &&) \
	  $(PIP) install -r requirements.txt && $(PIP) check; } \
	  || { echo; echo "Set-up stopped: pip could not install everything; its reason is above. Check the network and the disk, then run the same command again."; exit 1; }
	@rm .venv/.unfinished
	@touch $@

# Installed only where that needs no password; otherwise the tests that want them say so when they are skipped.
system:
	@missing=; for package in $(SYSTEM_PACKAGES); do command -v $$package >/dev/null || missing="$$missing $$package"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then sudo=; elif sudo -n true 2>/dev/null; then sudo="sudo -n"; else \
	  echo "Left out:$$missing (needs root; install it yourself, or its tests are skipped)"; exit 0; fi; \
	command -v apt-get >/dev/null || { echo "Left out:$$missing (no apt-get here; install it yourself, or its tests are skipped)"; exit 0; }; \
	echo "Installing$$missing"; \
	{ $$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends $$missing; } >/dev/null \
	  || echo "Left out:$$missing (apt-get could not install it)"

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info client_kits/*.egg-info screenshots
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
