SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BENCH ?= first_light

.PHONY: setup demo test check docs bench clean
.DEFAULT_GOAL := test

setup: $(VENV)/.ready

# The exact CPU build of torch first, so that nothing below pulls a larger one.
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@

demo: setup
	$(BIN)/python examples/demo.py $(if $(MODEL),--model "$(MODEL)" --data "$(DATA)") $(if $(REQUIRE),--require "$(REQUIRE)")

test: setup
	$(BIN)/coverage run -m pytest -q
	$(BIN)/coverage report --skip-covered --skip-empty | tail -n 25

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/house

docs: setup
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	$(BIN)/mkdocs build --strict

bench: setup
	$(BIN)/python -m pip install --quiet -e ".[peers]"
	$(BIN)/python benchmarks/$(BENCH).py

clean:
	-$(BIN)/python examples/demo.py --stop
	rm -rf demo build dist site .coverage .mypy_cache .ruff_cache .hypothesis .import_linter_cache
