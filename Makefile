# What a checkout can do. `make demo` and `make test` set up everything they need; nothing is installed twice.

SHELL := /bin/sh
BIN := .venv/bin
# The toolchains' locks are for Python 3.11: taken where it is there, else any newer one runs the engine.
PYTHON := $(shell for python in $(PYTHON) python3.11 python3 python3.14 python3.13 python3.12; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
INTAGLIO_HOME ?= $(CURDIR)/.intaglio-demo

.PHONY: help setup setup-test setup-lint setup-docs demo test lint format proof bench docs clean

help: ## Show what can be made
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## Set up .venv/ with the engine, and the Debian packages it needs
	@test -n "$(PYTHON)" || { echo "setup: Python 3.11 or newer is missing: apt-get install python3" >&2; exit 50; }
	@$(PYTHON) scripts/setup.py

setup-test setup-lint setup-docs: setup-%: setup
	@$(PYTHON) scripts/setup.py $*

demo: setup ## Build, sign, verify and serve a real model, once through (in .intaglio-demo/)
	@INTAGLIO_HOME="$(INTAGLIO_HOME)" $(BIN)/python scripts/demo.py

test: setup-test ## Run the tests (within 15 minutes)
	$(BIN)/python -m pytest tests -m "not long" -n auto --dist loadfile --no-loadscope-reorder

lint: setup-test setup-lint ## Check style, types, the floors of the house and the page of commands
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/commands.py --check

format: setup-lint ## Rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proof: setup-test ## Run what is long, and write its tables to docs/proof/
	@status=0; \
	$(BIN)/python -m pytest tests -m long || status=$$?; \
	$(BIN)/python -m benchmarks.proof || status=$$?; \
	exit $$status

bench: setup-test ## Measure ingest, verification, sandbox, transport and cached builds
	$(BIN)/python -m benchmarks --step tune

docs: setup-docs ## Build the documentation into site/, every link checked
	$(BIN)/mkdocs build --strict

clean: ## Remove what was made here; downloads outside the checkout stay
	@chmod -R u+w .intaglio-demo 2>/dev/null || true
	rm -rf .venv .intaglio-demo build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
