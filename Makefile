# make demo   a face from a sketch, with the lean runtime alone
# make test   everything that the tests need, then the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
RUNTIME := $(VENV)/runtime.installed
EVERYTHING := $(VENV)/everything.installed

.PHONY: demo test check gpu-test benchmark readme-tables clean

demo: $(RUNTIME)
	$(BIN)/psp-rt run models/sketch.engine models/drawing.png --output demo.png --couple
	@echo "Look at demo.png: the drawing, and the face that the model makes of it."

test: $(EVERYTHING) check
	$(BIN)/python -m pytest

check: $(EVERYTHING)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gpu-test: $(EVERYTHING)
	$(BIN)/python -m pytest -m gpu

benchmark: $(EVERYTHING)
	$(BIN)/python benchmarks/latency.py --json benchmarks/results/cpu-1024.json

readme-tables: $(EVERYTHING)
	$(BIN)/python benchmarks/readme_tables.py

clean:
	rm -rf $(VENV) demo.png

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[cpu]'
	@touch $@

$(EVERYTHING): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[cpu,export,train,dev]'
	@touch $@ $(RUNTIME)
