# Everything runs in .venv, which is made by the first target that needs it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
export PATH := $(CURDIR)/$(BIN):$(PATH)
export MLFLOW_TRACKING_URI ?= sqlite:///$(CURDIR)/mlflow.db

.DEFAULT_GOAL := help
.PHONY: help repro ui serve test test-slow test-all test-browser check docs docs-serve audit format clean

help: ## print this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

# An empty file for each installed set of packages, so that it is installed only once.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "visionpipe needs Python 3.11 or newer: make repro PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed tests/requirements.txt
	$(PIP) --editable '.[dev,jax,torch,medical]'
	$(PIP) --no-deps --requirement tests/requirements.txt
	@touch $@

repro: $(VENV)/.installed ## install, run the pipeline, and compare the models
	@visionpipe lock
	@visionpipe params
	dvc repro
	@visionpipe compare
	@echo "next:  make ui     compare runs, curves and pictures in the browser"
	@echo "       make serve  answer requests with the registered model"
	@echo "       for your images: visionpipe init flowers --images ~/photos"

ui: $(VENV)/.installed ## open the MLflow UI on http://127.0.0.1:5000
	@echo "the runs: http://127.0.0.1:5000/#/experiments/1?workflowType=machine_learning"
	mlflow ui --host 127.0.0.1 --port 5000

serve: $(VENV)/.installed ## serve the champion on http://127.0.0.1:8000
	visionpipe serve models:/visionpipe@champion

test: $(VENV)/.installed-dev ## run the fast tests, on all three backends
	pytest

test-slow: $(VENV)/.installed-dev ## run the other tests of CI: the README in a fresh clone, all backends, kills
	pytest -m 'slow and not rare'

test-all: $(VENV)/.installed-dev ## run the tests that CI omits: pipelines on JAX and torch, full attacks, the page
	pytest -m rare
	pytest -m browser --numprocesses=0

test-browser: $(VENV)/.installed-dev ## test the page in Chromium: apt-get install chromium chromium-driver
	pytest -m browser --numprocesses=0

check: $(VENV)/.installed-dev docs ## check format, lint, types, layers of imports, and documentation
	ruff format --check .
	ruff check .
	mypy
	lint-imports

docs: $(VENV)/.installed-dev ## build the documentation in site/; a broken link is an error
	zensical build --clean --strict

docs-serve: $(VENV)/.installed-dev ## serve the documentation on http://127.0.0.1:8001, and rebuild it after changes
	zensical serve --dev-addr 127.0.0.1:8001

audit: $(VENV)/.installed-dev ## run bandit on the code, and pip-audit on the pinned versions (needs the network)
	bandit --quiet --configfile pyproject.toml --recursive visionpipe
	pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

format: $(VENV)/.installed-dev ## format the code
	ruff format .
	ruff check --fix .

clean: ## remove the pipeline's outputs; the DVC cache and .venv remain
	rm -rf data/prepared* models artifacts reports registration.json comparison.md .visionpipe mlflow.db* mlartifacts
