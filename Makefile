# What a developer runs. `make check` is what CI runs; ARGS are passed on.
#   make test ARGS="tests/config -x"        make run ARGS="train --max-iters 50"
.PHONY: setup check format lint types test docs run
ARGS ?=
BIN := .venv/bin

setup: $(BIN)/ruff

# uv if there is one, else a virtual environment that gets one; either way .venv is what pyproject.toml asks for.
$(BIN)/ruff: pyproject.toml
	@if command -v uv >/dev/null; then uv sync --quiet; \
	else python3 -m venv .venv && $(BIN)/pip install --quiet uv && $(BIN)/uv sync --quiet --inexact; fi
	@touch $@

check:
	.ci/run

format: setup
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lint: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check

types: setup
	$(BIN)/mypy

test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 0 $(ARGS)

docs: setup
	$(BIN)/python -m mamba_tui.keys > docs/keys.md
	$(BIN)/python -m core.runs.event_docs

run: setup
	$(BIN)/mamba-tui $(ARGS)
