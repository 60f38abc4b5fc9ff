# make demo       two pictures with the lean runtime alone: a face from a drawing, and one from a snapshot
# make draw       a page at http://127.0.0.1:8000 on which the face follows your pen; Ctrl-C stops
# make test       everything that the tests need, then style, types and the quick tests
# make test-all   the slow tests too: full-size models
# make rtx-test   parse and build the FP16 graphs with TensorRT for RTX (100 MB more); needs no GPU
# make fuzz       attack every reader with damaged files and requests, for 25 minutes
# make gpu-test   the tests that need an NVIDIA GPU
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
RUNTIME := $(VENV)/runtime.installed
SERVER := $(VENV)/server.installed
EVERYTHING := $(VENV)/everything.installed
RTX := $(VENV)/rtx.installed
# One worker a core, each with one thread: many threads in small networks only wait for each other.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: demo draw test test-all check gpu-test rtx-test fuzz benchmark readme-tables train-demo clean

demo: $(RUNTIME)
	$(BIN)/psp-rt run models/sketch.engine models/drawing.png --output demo-drawing.png --couple
	$(BIN)/psp-rt run models/inversion.engine models/astronaut.jpg --output demo-snapshot.png --couple
	@echo "Look at demo-drawing.png: a drawing, and the face that the model makes of it;"
	@echo "and at demo-snapshot.png: the face found in a photo, and the model's picture of it."
	@echo "Type make draw to draw in the browser yourself."

draw: $(SERVER)
	$(BIN)/psp-rt serve models/sketch.engine models/inversion.engine models/super-resolution.engine

test: $(EVERYTHING) check
	$(PYTEST) -n $(WORKERS) --dist loadfile -m 'not slow and not rtx'

test-all: $(EVERYTHING) check
	$(PYTEST) -n $(WORKERS) --dist loadfile -m 'not slow and not rtx'
	$(BIN)/python -m pytest -m 'slow and not rtx'

check: $(EVERYTHING)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gpu-test: $(EVERYTHING)
	$(BIN)/python -m pytest -m gpu

rtx-test: $(RTX)
	$(BIN)/python -m pytest -m 'rtx and not slow'

fuzz: $(EVERYTHING)
	$(BIN)/python benchmarks/fuzz.py --seconds 300 --json benchmarks/results/fuzz.json

benchmark: $(EVERYTHING)
	$(BIN)/python benchmarks/latency.py --json benchmarks/results/cpu-1024.json

readme-tables: $(EVERYTHING)
	$(BIN)/python benchmarks/readme_tables.py

# Train the models of models/ again: hours on a CPU. For example
# make train-demo DEVICE=cpu FACES=photos HELD_OUT=others LPIPS=alexnet.pth HEADS=alex.pth IDENTITY=face.pt
DEVICE ?= cpu
train-demo: $(EVERYTHING)
	$(BIN)/python models/train.py --device $(DEVICE) --faces $(FACES) --held-out $(HELD_OUT) \
		--lpips-features $(LPIPS) --lpips-heads $(HEADS) $(if $(IDENTITY),--identity $(IDENTITY))

clean:
	rm -rf $(VENV) demo-drawing.png demo-snapshot.png

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[cpu]'
	@touch $@

$(SERVER): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[cpu,serve]'
	@touch $@ $(RUNTIME)

$(EVERYTHING): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[cpu,openvino,video,serve,export,train,benchmarks,dev]'
	@touch $@ $(RUNTIME)

# Without dependencies: the metapackage asks for CUDA, which a build for a stated GPU does not use.
$(RTX): constraints.txt | $(EVERYTHING)
	$(PIP) --no-deps tensorrt_rtx_cu13_libs tensorrt_rtx_cu13_bindings
	@touch $@
