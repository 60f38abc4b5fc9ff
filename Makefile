# make demo   a face from a sketch, with the lean runtime alone
# make test   everything that the tests need, then the tests
# make rtx-test   parse and build the FP16 graphs by TensorRT for RTX (100 MB more), which needs no GPU
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
RUNTIME := $(VENV)/runtime.installed
EVERYTHING := $(VENV)/everything.installed
RTX := $(VENV)/rtx.installed

.PHONY: demo test check gpu-test rtx-test benchmark readme-tables train-demo clean

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

rtx-test: $(RTX)
	$(BIN)/python -m pytest -m 'rtx and not slow'

benchmark: $(EVERYTHING)
	$(BIN)/python benchmarks/latency.py --json benchmarks/results/cpu-1024.json

readme-tables: $(EVERYTHING)
	$(BIN)/python benchmarks/readme_tables.py

# Make the models of models/ anew: hours on a CPU (the GPU way has not run yet). For example
# make train-demo DEVICE=cuda FACES=photos HELD_OUT=others LPIPS=alexnet.pth HEADS=alex.pth IDENTITY=face.pt
DEVICE ?= cpu
train-demo: $(EVERYTHING)
	$(BIN)/python models/train.py --device $(DEVICE) --faces $(FACES) --held-out $(HELD_OUT) \
		--lpips-features $(LPIPS) --lpips-heads $(HEADS) $(if $(IDENTITY),--identity $(IDENTITY))

clean:
	rm -rf $(VENV) demo.png

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[cpu]'
	@touch $@

$(EVERYTHING): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[cpu,openvino,export,train,benchmarks,dev]'
	@touch $@ $(RUNTIME)

# Without what they depend on: the metapackage asks for CUDA, which a build for a stated GPU does not use.
$(RTX): constraints.txt | $(EVERYTHING)
	$(PIP) --no-deps tensorrt_rtx_cu13_libs tensorrt_rtx_cu13_bindings
	@touch $@
