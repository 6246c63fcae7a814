# Two commands matter: `make demo` and `make test`. Each prepares what it needs on a machine that has Python 3.11+ and nothing else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DATA   ?= $(wildcard ../shared/data)
SHELL  := /bin/bash

.PHONY: help demo test slow lint demo-images .venv wheel bench-gpu clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    train diffusion detectors on real data beside honest baselines (about 4 minutes after the install)"
	@echo "make demo-images  train an image detector on Fashion-MNIST and write a page of maps (about 12 minutes; DATA=folder with tfds/)"
	@echo "make test    run the tests (under 15 minutes on 2 cores)"
	@echo "make slow    run the tests marked slow as well"
	@echo "make lint    ruff and pyright"
	@echo "make bench-gpu   speed and the ADBench sweep on an NVIDIA GPU (DATA=folder with adbench/)"
	@echo "make .venv   prepare the environment for tests and experiments (CPU)"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("jaxad needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev,data,experiments]'
	@touch $@ $(VENV)/demo.stamp

.venv: $(VENV)/dev.stamp

demo: $(VENV)/demo.stamp
	$(BIN)/jaxad demo

demo-images: $(VENV)/demo.stamp
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[data]'
	$(BIN)/python -m experiments.demo_images $(if $(DATA),--data-dir $(DATA),--download)

test: $(VENV)/dev.stamp
	JAXAD_DATA_DIR=$(DATA) $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --durations=15

slow: $(VENV)/dev.stamp
	XLA_FLAGS=--xla_force_host_platform_device_count=8 JAXAD_DATA_DIR=$(DATA) $(BIN)/python -m pytest -n 2 --dist loadfile --durations=15 --timeout=3600

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

bench-gpu: $(VENV)/dev.stamp
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[cuda]'
	$(BIN)/python -m experiments.speed --data-dir $(DATA) --peer-device cuda
	$(BIN)/python -m experiments.adbench --data-dir $(DATA) --detectors ddpm dit dte-c --seeds 0 1 2 3 4 --out runs/bench-gpu

wheel: $(VENV)/dev.stamp
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) dist runs .pytest_cache .ruff_cache
