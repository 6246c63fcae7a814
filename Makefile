# Two commands matter: `make demo` and `make test`. Each prepares what it needs on a machine that has Python 3.11+ and nothing else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DATA   ?= $(wildcard ../shared/data)
SHELL  := /bin/bash

.PHONY: help demo test slow lint demo-images .venv wheel bench-gpu gpu-wheels gpu-data clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    train diffusion detectors on real data beside honest baselines (about 4 minutes after the install)"
	@echo "make demo-images  train an image detector on Fashion-MNIST and write a page of maps (about 12 minutes; DATA=folder with tfds/)"
	@echo "make test    run the tests (under 15 minutes on 2 cores)"
	@echo "make slow    run the tests marked slow as well"
	@echo "make lint    ruff and pyright"
	@echo "make bench-gpu   checks and measures on an NVIDIA GPU, nine minutes at most, by PYTHON's own jax (DATA=folder with adbench/)"
	@echo "make gpu-wheels gpu-data   what bench-gpu needs on a machine without a network: .whl/ and .gpu-data/ (DATA=folder with adbench/)"
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

# Fetches nothing: jax with CUDA has to be there, the rest may come in .whl/. The folder of results is $OUT where that is set.
bench-gpu:
	@if compgen -G '.whl/*.whl' > /dev/null; then \
		$(PYTHON) -m pip install -q --disable-pip-version-check --no-index --no-deps --no-compile --upgrade --target .gpu-site .whl/*.whl; fi
	PYTHONPATH=$(CURDIR)/.gpu-site$${PYTHONPATH:+:$$PYTHONPATH} PYTHONUNBUFFERED=1 $(PYTHON) -m experiments.gpu \
		$(addprefix --data-dir ,$(firstword $(DATA) $(wildcard .gpu-data))) \
		$(addprefix --commit ,$(COMMIT)) --out $(or $(OUT),runs/gpu)/results.jsonl $(GPU_OPTIONS)

# For Python 3.12 on Linux; pip matches each tag exactly as it is written.
GPU_PLATFORMS := manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64 manylinux1_x86_64

gpu-wheels: | $(BIN)/python
	rm -rf .whl
	$(BIN)/python -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
		$(addprefix --platform ,$(GPU_PLATFORMS)) -d .whl -r experiments/on_gpu/wheels.txt
	$(BIN)/python -m pip wheel -q --disable-pip-version-check --no-deps -w .whl .
	@du -sm .whl | awk '{ print "wheels: " $$1 " MiB in .whl" } $$1 >= 50 { print "more than may travel"; exit 1 }'

gpu-data: $(VENV)/dev.stamp
	$(BIN)/python -m experiments.gpu --carry .gpu-data $(addprefix --data-dir ,$(DATA))

wheel: $(VENV)/dev.stamp
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) dist runs .whl .gpu-data .gpu-site .pytest_cache .ruff_cache
