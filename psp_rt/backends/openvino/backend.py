"""The graphs on OpenVINO, on the CPU.

Each graph is compiled once, for one picture, and a batch goes through it picture by picture. Measured on two
busy cores: the generator at 1024 pixels takes as long for two pictures one by one as for a batch of two (the
encoder 7 percent longer for four), and a batch of four needs 3.3 GB for its activations instead of 1.7; the
demonstration's generator is a fifth faster with a fixed batch than with an open one. So no batch size costs a
compilation or more memory, and a picture's result does not depend on the rest of its batch.

OpenVINO's ONNX reader takes weights only from files next to the graph, and lets a graph name an address in
memory (``_ORT_MEM_ADDR_``). So it is given graphs without any reference: their weights are inputs, and become
constants that share the mapped engine file.
"""

from __future__ import annotations

import io
import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

from ...engine.graph import Weight
from ...engine.manifest import Manifest
from ...engine.ports import GRAPHS, FoundPort, Port, check_ports, graph_ports
from ...engine.reader import EngineFile
from ...errors import BackendError, FormatError, out_of_memory
from ...hardware.openvino import load_openvino, openvino_core
from ...hardware.probe import default_threads
from ...native import calling, check_not_ending, owns
from ..backend import LESS_MEMORY, Backend
from .rewrites import TwoPrecisions, compile_in_two, read_channels_last

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}  # to OpenVINO's names


class OpenVinoBackend(Backend):
    """Compiled graphs of one engine; clones run the same ones through requests of their own."""

    name = "openvino"
    device = "cpu"

    def __init__(
        self, models: dict[str, Any], manifest: Manifest, *, precision: str, description: str
    ) -> None:
        self._models = models
        self._requests = {name: model.create_infer_request() for name, model in models.items()}
        self._manifest = manifest
        self.precision, self.description = precision, description
        owns(self)

    @classmethod
    def open(cls, engine: EngineFile, *, precision: str, threads: int | None = None) -> OpenVinoBackend:
        """Load and compile all graphs: errors surface now, and the first call is not slower than the rest.

        Args:
            engine: The engine.
            precision: "fp32", or "bf16" if the processor has it.
            threads: None for one on each physical core.

        Raises:
            FormatError: A graph cannot be loaded, or its inputs or outputs are not the manifest's.
        """
        threads = default_threads() if threads is None else threads
        names = [name for name in GRAPHS if f"{name}.onnx" in engine.names]
        graphs = {
            name: engine.graph_with_inputs(name) for name in names
        }  # all are checked before one is loaded
        models = {name: _compiled(engine, name, *graphs[name], precision, threads) for name in names}
        engine.check_unchanged()
        in_two = isinstance(models.get("encoder"), TwoPrecisions)
        what = {"bf16": "encoder's heads and generator in bf16" if in_two else "generator in bf16"}
        where = f"{what.get(precision, precision)}, {threads or 'all'} threads"
        version = load_openvino().__version__.partition("-")[0]
        return cls(models, engine.manifest, precision=precision, description=f"OpenVINO {version}, {where}")

    def clone(self) -> OpenVinoBackend:
        """Return a backend on the same compiled graphs."""
        with calling():
            check_not_ending()
            return OpenVinoBackend(
                dict(self._models), self._manifest, precision=self.precision, description=self.description
            )

    def close(self) -> None:
        """Release the compiled graphs; the last clone frees them."""
        with calling():
            self._models, self._requests = {}, {}

    def __del__(self) -> None:
        """Release the compiled graphs of a backend that was dropped without closing it."""
        if hasattr(self, "_requests"):  # its creation may have failed
            self.close()

    def bare(self, name: str) -> Any:
        """Return the request of a graph, which takes one picture at a time."""
        return self._requests[name]

    def run_graph(self, name: str, inputs: dict[str, npt.NDArray[Any]]) -> Any:
        """Run a graph on each row of its inputs."""
        output = graph_ports(self._manifest, name)[1][0]
        results = np.empty((len(next(iter(inputs.values()))), *output.shape), output.dtype)
        for row in range(len(results)):
            rows = {key: values[row : row + 1] for key, values in inputs.items()}
            with calling():
                check_not_ending()
                self._run_row(self._requests[name], name, rows, results[row])
        return results

    def _run_row(
        self, request: Any, name: str, inputs: dict[str, npt.NDArray[Any]], result: npt.NDArray[Any]
    ) -> None:
        try:
            request.infer(inputs, share_inputs=True, share_outputs=True)
            found = request.get_output_tensor(0).data
        except Exception as error:  # pybind's RuntimeError, ValueError, TypeError
            if lack := out_of_memory(error, f"running the {name}", LESS_MEMORY):
                raise lack from error
            raise BackendError(f"OpenVINO failed in the {name} on {self.device}: {error}") from error
        if found.shape != (1, *result.shape):
            raise FormatError(
                f"{name}.onnx gave {list(found.shape)}; the manifest promises {[1, *result.shape]}"
            )
        result[:] = found[0]


def _compiled(
    engine: EngineFile, name: str, graph: bytes, weights: dict[str, Weight], precision: str, threads: int
) -> Any:
    """Read, check and compile a graph whose weights stay in the mapped engine file."""
    title = f"{engine.path}: {name}.onnx"
    with open(engine.path, "rb") as file:
        # Private, since OpenVINO requires writable memory; it never writes.
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    try:
        model = _read(graph, weights, memoryview(data))
        inputs, outputs = graph_ports(engine.manifest, name)
        check_ports(title, "input", [_found(port, inputs) for port in model.inputs], inputs)
        check_ports(title, "output", [_found(port, outputs) for port in model.outputs], outputs)
        model.reshape({port.name: [1, *port.shape] for port in inputs})
        read_channels_last(model)
        compiled = _compiled_model(model, name, precision, threads)
    except FormatError:
        raise
    except UnicodeDecodeError:
        raise FormatError(f"{title} has an input whose name is not text; export the engine again") from None
    except Exception as error:  # pybind's RuntimeError, ValueError, TypeError
        if lack := out_of_memory(error, f"loading the {name}", LESS_MEMORY):
            raise lack from error
        raise FormatError(f"{title} cannot be loaded: {error}") from error
    if hasattr(mmap, "MADV_DONTNEED"):  # otherwise the weights would count twice as this process's memory
        data.madvise(mmap.MADV_DONTNEED)
    return compiled


def _compiled_model(model: Any, name: str, precision: str, threads: int) -> Any:
    """Compile a graph.

    BF16 keeps 8 bits of every intermediate number. It is for the generator, whose pictures it moves by 54 dB
    or more on the demonstration models, and for the heads of the encoder (see `TwoPrecisions`).
    """

    def compile_model(part: Any, precision: str) -> Any:
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[
                precision
            ],  # by default it is BF16 if the processor has it
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # this process and others have other work for the cores, too
        }
        settings |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
        return openvino_core().compile_model(part, "CPU", settings)

    if precision == "bf16" and name == "encoder":
        return compile_in_two(model, compile_model) or compile_model(model, "fp32")
    return compile_model(model, precision if name == "generator" else "fp32")


def _read(graph: bytes, weights: dict[str, Weight], data: memoryview) -> Any:
    """Return OpenVINO's model of a graph, with its weights as constants."""
    openvino = load_openvino()
    reader = openvino.frontend.FrontEndManager().load_by_framework("onnx")  # never guess the format
    model = reader.convert(reader.load(io.BytesIO(graph)))
    for parameter in model.get_parameters():
        weight = weights.get(parameter.get_friendly_name())
        if weight is not None:
            constant = openvino.op.Constant(weight.array(data), shared_memory=True)
            parameter.output(0).replace(constant.output(0))
            model.remove_parameter(parameter)
    return model


def _found(port: Any, expected: list[Port]) -> FoundPort:
    names = sorted(port.get_names())
    name = next((wanted.name for wanted in expected if wanted.name in names), ", ".join(names))
    partial = port.get_partial_shape()
    sizes = partial if partial.rank.is_static else ()
    shape = tuple(size.get_length() if size.is_static else None for size in sizes)
    return FoundPort(name=name, dtype=str(port.get_element_type().to_dtype()), shape=shape)
