# Everything runs from .venv, which `make install` fills from requirements.lock. Needs Python 3.11 or newer and a network.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint types format lock wheel clean

BIN := .venv/bin
RUN := $(BIN)/lightning_vos
DEMO := runs/demo
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
