# Every target makes .venv by itself and installs what it needs from pyproject.toml and constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench counts compile-report clean

demo: .venv/.demo
	$(BIN)/hnkernels demo

# The second run takes the CPU tensors through the Triton kernels, in Triton's interpreter.
test: .venv/.dev
	$(BIN)/python -m pytest -n auto
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n auto tests/triton tests/test_functional.py tests/test_lowrank.py

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/.dev
	$(BIN)/python -m benchmarks

counts: .venv/.dev
	$(BIN)/python -m benchmarks.counts

compile-report: .venv/.dev
	$(BIN)/python -m benchmarks.compiled

clean:
	rm -rf .venv build dist *.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo .venv/.dev: .venv/.%: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$*]"
	touch $@
