# Every target sets itself up from nothing: a virtual environment in the checkout, torch first, pinned versions.
# PYTHON picks the interpreter. TORCH_INDEX picks the build of torch, such as
# https://download.pytorch.org/whl/cpu for a machine without a GPU.
PYTHON ?= python3
TORCH_INDEX ?=
OUTPUT ?= headedit-demo
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CONSTRAINTS := .ci/constraints.txt
TORCH := $(shell grep '^torch==' $(CONSTRAINTS))

.PHONY: demo test lint bench clean

demo: $(READY)
	$(BIN)/headedit demo --output $(OUTPUT)

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/headedit bench

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache

$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable ".[dev]"
	touch $@
