"""The graphs on OpenVINO, on the CPU.

Each graph is compiled once, for one picture, and a batch goes through it picture by picture.
Measured on two busy cores: the generator at 1024 pixels takes as long for two pictures one by one as
for a batch of two (the encoder 7 percent longer for four), and a batch of four needs 3.3 GB for its
activations instead of 1.7; the demonstration's generator is a fifth faster where the batch is fixed
than where it is open. So no batch size costs a compilation or more memory, and a picture's result
does not depend on its neighbours.

OpenVINO's ONNX reader takes weights from files beside the graph only, and lets a graph name an
address in memory (``_ORT_MEM_ADDR_``). So it is given graphs without any reference: their weights are
inputs, and become constants that share the mapped engine file.
"""

from __future__ import annotations

import io
import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...engine.graph import Weight, WeightsAsInputs
from ...engine.manifest import Manifest
from ...engine.ports import GRAPHS, FoundPort, Port, check_ports, graph_ports
from ...engine.reader import EngineFile
from ...errors import BackendError, FormatError
from ...hardware.openvino import load_openvino, openvino_core
from ...hardware.probe import default_threads
from ..backend import GraphCalls
from .heads import TwoPrecisions, compile_in_two
from .layout import read_channels_last

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}  # to OpenVINO's names


class OpenVinoBackend(GraphCalls):
    """Compiled graphs of one engine; clones run the same ones through requests of their own."""

    name = "openvino"
    device = "cpu"

    def __init__(
        self, models: dict[str, Any], manifest: Manifest, *, precision: str, description: str
    ) -> None:
        self._models = models
        self._requests = {name: model.create_infer_request() for name, model in models.items()}
        self._manifest = manifest
        self.precision = precision
        self.description = description

    @classmethod
    def open(cls, engine: EngineFile, *, precision: str, threads: int | None = None) -> OpenVinoBackend:
        """Load and compile the graphs, all at once: mistakes come now, and no picture is a slow one.

        Args:
            precision: "fp32" or "bf16", which the processor must have.

        Raises:
            FormatError: A graph cannot be loaded, or its inputs or outputs are not the manifest's.
        """
        threads = default_threads() if threads is None else threads
        names = [name for name in GRAPHS if f"{name}.onnx" in engine.names]
        models = {name: _compiled(engine, name, precision, threads) for name in names}
        engine.check_unchanged()
        halves = isinstance(models.get("encoder"), TwoPrecisions)
        what = {"bf16": "encoder's heads and generator in bf16" if halves else "generator in bf16"}
        where = f"{what.get(precision, precision)}, {threads or 'all'} threads"
        version = load_openvino().__version__.partition("-")[0]
        return cls(models, engine.manifest, precision=precision, description=f"OpenVINO {version}, {where}")

    def clone(self) -> OpenVinoBackend:
        """Return a backend on the same compiled graphs."""
        return OpenVinoBackend(
            dict(self._models), self._manifest, precision=self.precision, description=self.description
        )

    def close(self) -> None:
        """Let go of the compiled graphs; they end with the last clone."""
        self._models, self._requests = {}, {}

    def _run(self, name: str, feeds: dict[str, Any]) -> Any:
        """Run a graph on each row of its inputs."""
        output = graph_ports(self._manifest, name)[1][0]
        results = np.empty((len(next(iter(feeds.values()))), *output.shape), output.dtype)
        request = self._requests[name]
        for row in range(len(results)):
            inputs = {key: values[row : row + 1] for key, values in feeds.items()}
            try:
                request.infer(inputs, share_inputs=True, share_outputs=True)
                found = request.get_output_tensor(0).data
            except Exception as error:  # pybind's RuntimeError, ValueError, TypeError
                raise BackendError(f"OpenVINO failed in the {name} on {self.device}: {error}") from error
            if found.shape != (1, *output.shape):
                raise FormatError(
                    f"{name}.onnx gave {list(found.shape)}; the manifest promises {[1, *output.shape]}"
                )
            results[row] = found[0]
        return results


def _settings(precision: str, threads: int) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],  # or it takes BF16 where the processor has it
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # other work in this process, and other processes, want the cores too
    }
    return settings | ({"INFERENCE_NUM_THREADS": threads} if threads else {})


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """A graph without references, and the weights that it takes as inputs."""

    what: str  # for messages
    model: bytes
    weights: dict[str, Weight]


def _compiled(engine: EngineFile, name: str, precision: str, threads: int) -> Any:
    graph = _checked(engine, name)
    with open(engine.path, "rb") as file:
        # Private, since OpenVINO wants memory that it could write to; it never does.
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    try:
        model = _read(graph, memoryview(data))
        _fix_batch(graph.what, model, *graph_ports(engine.manifest, name))
        read_channels_last(model)
        compiled = _compiled_model(model, name, precision, threads)
    except (FormatError, MemoryError):
        raise
    except UnicodeDecodeError:
        raise FormatError(
            f"{graph.what} has an input whose name is no text; export the engine again"
        ) from None
    except Exception as error:  # pybind's RuntimeError, ValueError, TypeError
        raise FormatError(f"{graph.what} cannot be loaded: {error}") from error
    if hasattr(mmap, "MADV_DONTNEED"):  # or the weights would count twice as this process's memory
        data.madvise(mmap.MADV_DONTNEED)
    return compiled


def _compiled_model(model: Any, name: str, precision: str, threads: int) -> Any:
    """Compile a graph.

    BF16 keeps 8 bits of every intermediate number. It is for the generator, whose pictures it moves by 54 dB
    or more on the demonstration models, and for the heads of the encoder (:mod:`.openvino_heads` says why).
    """

    def compile_model(part: Any, precision: str) -> Any:
        return openvino_core().compile_model(part, "CPU", _settings(precision, threads))

    if precision == "bf16" and name == "encoder":
        return compile_in_two(model, compile_model) or compile_model(model, "fp32")
    return compile_model(model, precision if name == "generator" else "fp32")


def _checked(engine: EngineFile, name: str) -> _Graph:
    """Return a graph that refers to nothing; whatever would is refused."""
    what, weights_name = f"{engine.path}: {name}.onnx", f"{name}.weights"
    span = engine.span(weights_name) if weights_name in engine.names else None
    rewriter = WeightsAsInputs(what, weights_name=weights_name, weights=span)
    with engine.view(f"{name}.onnx") as graph:
        model = rewriter.rewrite(graph)
    return _Graph(what=what, model=model, weights=rewriter.taken)


def _read(graph: _Graph, data: memoryview) -> Any:
    """Return OpenVINO's model of a graph, with its weights in it."""
    openvino = load_openvino()
    reader = openvino.frontend.FrontEndManager().load_by_framework("onnx")  # never guess the format
    model = reader.convert(reader.load(io.BytesIO(graph.model)))
    for parameter in model.get_parameters():
        weight = graph.weights.get(parameter.get_friendly_name())
        if weight is not None:
            constant = openvino.op.Constant(weight.array(data), shared_memory=True)
            parameter.output(0).replace(constant.output(0))
            model.remove_parameter(parameter)
    return model


def _fix_batch(what: str, model: Any, inputs: list[Port], outputs: list[Port]) -> None:
    """Check a model's inputs and outputs against the manifest's, and set its batch to one picture."""
    check_ports(what, "input", [_found(port, inputs) for port in model.inputs], inputs)
    check_ports(what, "output", [_found(port, outputs) for port in model.outputs], outputs)
    model.reshape({port.name: [1, *port.shape] for port in inputs})


def _found(port: Any, expected: list[Port]) -> FoundPort:
    names = sorted(port.get_names())
    name = next((wanted.name for wanted in expected if wanted.name in names), ", ".join(names))
    partial = port.get_partial_shape()
    sizes = partial if partial.rank.is_static else ()
    shape = tuple(size.get_length() if size.is_static else None for size in sizes)
    return FoundPort(name=name, dtype=str(port.get_element_type().to_dtype()), shape=shape)
