# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
export PATH := $(CURDIR)/$(BIN):$(PATH)
export MLFLOW_TRACKING_URI ?= sqlite:///$(CURDIR)/mlflow.db

.DEFAULT_GOAL := help
.PHONY: help repro ui serve test test-slow test-all test-browser check docs docs-serve audit format clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

# A stamp for each set of packages, so that a second call costs nothing.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "visionpipe needs Python 3.11 or newer: make repro PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed tests/requirements.txt
	$(PIP) --editable '.[dev,jax,torch]'
	$(PIP) --no-deps --requirement tests/requirements.txt
	@touch $@

repro: $(VENV)/.installed ## install, run the pipeline, compare the models
	@visionpipe lock
	@visionpipe params
	dvc repro
	@visionpipe compare
	@echo "next:  make ui     compare runs, curves and pictures in the browser"
	@echo "       make serve  answer requests with the registered model"
	@echo "       your own images: set prepare.source and prepare.path in params.yaml, then make repro"

ui: $(VENV)/.installed ## open the MLflow UI on http://127.0.0.1:5000
	@echo "the runs: http://127.0.0.1:5000/#/experiments/1?workflowType=machine_learning"
	mlflow ui --host 127.0.0.1 --port 5000

serve: $(VENV)/.installed ## serve the champion on http://127.0.0.1:8000
	visionpipe serve models:/visionpipe@champion

test: $(VENV)/.installed-dev ## the suite on all three backends
	pytest

test-slow: $(VENV)/.installed-dev ## the rest of what CI runs: the README in a fresh clone, all backends, kills
	pytest -m 'slow and not rare'

test-all: $(VENV)/.installed-dev ## what CI does not run: pipelines on JAX and torch, attacks at full length, the page
	pytest -m rare
	pytest -m browser --numprocesses=0

test-browser: $(VENV)/.installed-dev ## the page in Chromium: apt-get install chromium chromium-driver
	pytest -m browser --numprocesses=0

check: $(VENV)/.installed-dev docs ## format, lint, types, which room imports which, the documentation
	ruff format --check .
	ruff check .
	mypy
	lint-imports

docs: $(VENV)/.installed-dev ## build the documentation into site/; a broken link is an error
	zensical build --clean --strict

docs-serve: $(VENV)/.installed-dev ## show the documentation on http://127.0.0.1:8001, and follow changes
	zensical serve --dev-addr 127.0.0.1:8001

audit: $(VENV)/.installed-dev ## bandit on the code, pip-audit on the pinned versions (asks the package index)
	bandit --quiet --configfile pyproject.toml --recursive visionpipe
	pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

format: $(VENV)/.installed-dev ## put the code into its format
	ruff format .
	ruff check --fix .

clean: ## remove what the pipeline made here; the DVC cache and .venv stay
	rm -rf data/prepared* models artifacts reports registration.json comparison.md .visionpipe mlflow.db* mlartifacts
