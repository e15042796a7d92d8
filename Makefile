# Everything runs from .venv, which `make install` fills from requirements.lock. Needs Python 3.11 or newer and a network.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help install demo tables test test-all lint types format lock wheel clean

BIN := .venv/bin
RUN := $(BIN)/lightning_vos
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)

help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/.installed ## Install the locked packages and this one, editable, into .venv

.uv/bin/uv:
	python3 -m venv .uv
	.uv/bin/python -m pip install --quiet uv

.venv/.installed: requirements.lock pyproject.toml | $(filter .uv/bin/uv,$(UV))
	test -x $(BIN)/python || "$(UV)" venv --quiet --python 'python>=3.11' .venv
	"$(UV)" pip sync --quiet --require-hashes --python .venv requirements.lock
	"$(UV)" pip install --quiet --no-deps --python .venv --editable .
	touch .venv/.installed

SEED ?= 0
demo: install ## Train a small MAVOS on rendered videos, test it on others, leave an overlay to look at (SEED=0)
	$(RUN) fit --config configs/demo.yaml --seed_everything $(SEED)
	$(RUN) test --config configs/demo.yaml --ckpt_path last

tables: install ## Render the tables of experiments/*/README.md from their files and results
	$(RUN) experiment tables

test: install ## Run the tests (under ten minutes on two cores)
	$(BIN)/python -m pytest

test-all: install ## Run the tests that take minutes, too
	$(BIN)/python -m pytest -m "not gpu"

lint: install ## Check style and that the parts depend on each other in one direction
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: install ## Check types, strictly
	$(BIN)/mypy

format: install ## Mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: | $(filter .uv/bin/uv,$(UV)) ## Choose versions anew; the lock holds versions and hashes, no addresses
	"$(UV)" pip compile pyproject.toml --universal --generate-hashes --all-extras --upgrade --quiet -o requirements.lock

wheel: install ## Build the wheel into dist/
	"$(UV)" build --quiet --wheel --out-dir dist .

clean: ## Remove what make has made, but for runs/ and data/
	rm -rf .venv .uv dist .pytest_cache .mypy_cache .ruff_cache
