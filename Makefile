# offboard-worker. Each target sets up what it needs in .venv; nothing outside this folder is touched, no root is needed.
# `make demo` and `make test` are all that a newcomer needs. PYTHON=… chooses an interpreter; it must be 3.11 or newer.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV := $(BIN)/uv
PYTEST ?= $(BIN)/pytest
ARGS ?=

.PHONY: help install demo test check format bench lock wheel clean

help:  ## Say what there is to do
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

install: $(STAMP)  ## Make .venv with the locked packages and the project itself, editable

# The stamp is newer than what it was made from, or the environment is brought up to date. uv is quick, and locked with a
# hash like everything else; where it can't be had, pip does the same slowly.
$(STAMP): requirements.lock pyproject.toml
	@python=; for candidate in "$(PYTHON)" python3.13 python3.12 python3.11 python3 python; do \
	  if [ -n "$$candidate" ] && "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    python=$$candidate; break; fi; done; \
	if [ -z "$$python" ]; then \
	  echo "error: no Python 3.11 or newer was found on PATH (found: $$(python3 --version 2>&1 | head -n 1))" >&2; \
	  echo "  next      install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2; exit 2; fi; \
	if ! $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	  echo "making $(VENV) with $$($$python --version 2>&1)"; \
	  "$$python" -m venv --clear $(VENV) || { \
	    echo "  next      this Python lacks the venv module: install it (on Debian and Ubuntu: python3-venv)" >&2; exit 2; }; fi
	@awk '/^uv==/ { on = 1 } on { print } on && !/\\$$/ { exit }' requirements.lock > $(VENV)/uv.txt
	@if $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $(VENV)/uv.txt \
	  && $(UV) pip sync --quiet --system-certs --python $(BIN)/python --require-hashes requirements.lock; then :; else \
	  echo "uv could not install the locked packages here: pip does it, which takes longer"; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock; fi
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)  ## Play one leaver's story on a real Valkey and simulated vendors (ARGS=--keep leaves it running)
	@$(BIN)/offboard demo $(ARGS)

test: $(STAMP)  ## Run every test (ARGS="tests/core -x" narrows it)
	@$(PYTEST) $(ARGS)

check: $(STAMP)  ## Lint, format, types, directions of import, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) -q tests/test_documentation.py

format: $(STAMP)  ## Put the code into the one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## Run the benchmarks and print their figures
	@for bench in $(sort $(filter-out %/__init__.py,$(wildcard benchmarks/[a-z]*.py))); do \
	  if grep -q '^if __name__ == ' "$$bench"; then \
	    name=$$(basename "$$bench" .py); echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; fi; done

# The lock names no host: hashes say what a package is, the machine's own settings say where it comes from.
lock: $(STAMP)  ## Write requirements.lock anew (ARGS=--upgrade for newer versions)
	$(UV) pip compile pyproject.toml --all-extras --group dev --universal --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --no-header --quiet --python-version 3.11 $(ARGS) --output-file requirements.lock

wheel: $(STAMP)  ## Build the wheel into dist/
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/*.whl

clean:  ## Remove what was made here
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
