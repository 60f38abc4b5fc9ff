"""The graphs on ONNX Runtime, on the CPU or with its CUDA provider.

Weights are mapped from the engine file by ONNX Runtime itself, and not passed as buffers. Measured with 377
MB of 3x3 convolutions on the CPU: 0.8 GB resident and loaded in 1.2 s mapped, 1.5 GB and 2.1 s as buffers
(and the call for buffers is missing on Python 3.10, whose last release is 1.23).

On CUDA, pictures in GPU memory are read and written in place. Codes go through the host: 36 KB for an
official model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import closing, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..cuda.arrays import GpuArrays, GpuPictures
from ..cuda.device import CudaDevice, Resources
from ..engine.manifest import Manifest
from ..engine.ports import GRAPHS, FoundPort, Port, check_ports, graph_ports
from ..engine.reader import EngineFile
from ..errors import BackendError, DeviceError, FormatError, PspError, out_of_memory
from ..hardware.probe import CUDA_PROVIDER, INSTALL_CUDA, default_threads
from ..native import calling, check_not_ending, owns
from .backend import LESS_MEMORY, Backend, GpuRequest

if TYPE_CHECKING:
    import onnxruntime

_OF_THE_GRAPH = {"InvalidGraph", "InvalidProtobuf", "NotImplemented", "NoSuchFile"}  # ONNX Runtime's errors
_TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


class OnnxRuntimeBackend(Backend):
    """Sessions for the graphs of one engine; several threads may run them at once."""

    name = "onnxruntime"
    precision = "fp32"

    def __init__(self, sessions: dict[str, Any], manifest: Manifest, device: str, description: str) -> None:
        self._sessions, self._manifest = sessions, manifest
        self.device, self.description = device, description
        owns(self)

    @classmethod
    def open(cls, engine: EngineFile, *, device: str, threads: int | None = None) -> OnnxRuntimeBackend:
        """Load all graphs: errors surface now, and the first call is not slower than the rest.

        Args:
            engine: The engine.
            device: "cpu" or "cuda:N".
            threads: On the CPU; None for one on each physical core.

        Raises:
            FormatError: A graph cannot be loaded, or its inputs or outputs are not the manifest's.
            DeviceError: ONNX Runtime does not provide the device after all.
        """
        import onnxruntime

        threads = default_threads() if threads is None else threads
        if device != "cpu" and hasattr(onnxruntime, "preload_dlls"):
            with redirect_stdout(StringIO()):  # it prints what it does not find
                onnxruntime.preload_dlls()  # finds CUDA and cuDNN that pip installed
        names = [name for name in GRAPHS if f"{name}.onnx" in engine.names]
        graphs = {name: engine.graph(name) for name in names}  # all are checked before one is loaded
        sessions = {name: _session(engine, name, graph, device, threads) for name, graph in graphs.items()}
        engine.check_unchanged()
        for name, session in sessions.items():
            _check_ports(f"{engine.path}: {name}.onnx", session, *graph_ports(engine.manifest, name))
        where = f"{threads or 'all'} threads" if device == "cpu" else device + _left_on_cpu(sessions.values())
        return cls(sessions, engine.manifest, device, f"ONNX Runtime {onnxruntime.__version__}, {where}")

    def clone(self) -> OnnxRuntimeBackend:
        """Return a backend on the same sessions."""
        return OnnxRuntimeBackend(dict(self._sessions), self._manifest, self.device, self.description)

    def close(self) -> None:
        """Release the sessions; the last clone ends them."""
        with calling():
            self._sessions = {}

    def __del__(self) -> None:
        """Release the sessions of a backend that was dropped without closing it."""
        self.close()

    def bare(self, name: str) -> Any:
        """Return the session of a graph."""
        return self._sessions[name]

    def run_graph(self, name: str, inputs: dict[str, npt.NDArray[Any]]) -> Any:
        """Run a session on a batch."""
        output = graph_ports(self._manifest, name)[1][0]
        with calling():
            check_not_ending()
            try:
                (result,) = self._sessions[name].run([output.name], inputs)
            except Exception as error:  # ONNX Runtime's own error classes have no common base
                raise self._failure(name, error) from error
        _check_shape(name, result.shape, len(next(iter(inputs.values()))), output)
        return result

    def translate_on_gpu(self, request: GpuRequest) -> Any:
        """Translate pictures in GPU memory; returns when the result is there."""
        if self.device == "cpu":
            return super().translate_on_gpu(request)
        device = CudaDevice(int(self.device.partition(":")[2]))
        with closing(device), device.current(), closing(Resources(device)) as made:
            arrays = GpuArrays(device)
            stream = int(made.stream()) if request.stream is None else arrays.stream(request.stream)
            pictures = arrays.take(
                request.images,
                request.out,
                manifest=self._manifest,
                styles=len(request.styles) if request.has_style_axis else None,
                stream=stream,
                shared=request.stream is not None,
            )
            device.call("cuStreamSynchronize", stream)  # ONNX Runtime's own streams are not ordered after it
            self._translate_bound(pictures, request)
        return pictures.result

    def _translate_bound(self, pictures: GpuPictures, request: GpuRequest) -> None:
        """Encode and generate in parts, as `translate` does, between addresses on the GPU."""
        image, picture = (
            graph_ports(self._manifest, "encoder")[0][0],
            graph_ports(self._manifest, "generator")[1][0],
        )
        image_bytes, picture_bytes = int(np.prod(image.shape)), int(np.prod(picture.shape))
        styles, largest = len(request.styles), request.max_batch
        images_at_once = largest // styles or largest
        for first in range(0, pictures.count, images_at_once):
            count = min(images_at_once, pictures.count - first)
            source = pictures.source + first * image_bytes
            codes = self._run_bound("encoder", count, {"image": source})
            mixed = request.styles.mixed_into(codes)
            for at in range(0, count * styles, largest):
                parts = [np.ascontiguousarray(values[at : at + largest]) for values in mixed]
                inputs = dict(zip(("codes", "reference", "weights"), parts, strict=True))
                target = pictures.target + (first * styles + at) * picture_bytes
                self._run_bound("generator", len(parts[0]), inputs, target=target)

    def _run_bound(self, name: str, rows: int, inputs: dict[str, Any], *, target: int | None = None) -> Any:
        """Run a session between arrays on the host and addresses on the GPU.

        Returns:
            The output; None if it was written to the target.
        """
        ports, (output,) = graph_ports(self._manifest, name)
        shapes = {port.name: (rows, *port.shape) for port in ports}
        with calling():
            check_not_ending()
            try:
                binding = self._sessions[name].io_binding()
                for key, value in inputs.items():
                    if isinstance(value, int):
                        binding.bind_input(key, *self._place(), np.uint8, shapes[key], value)
                    else:
                        binding.bind_cpu_input(key, value)
                if target is None:
                    binding.bind_output(output.name, "cpu", 0)
                else:
                    shape = (rows, *output.shape)
                    binding.bind_output(output.name, *self._place(), np.uint8, shape, target)
                binding.synchronize_inputs()
                self._sessions[name].run_with_iobinding(binding)
                binding.synchronize_outputs()
            except Exception as error:  # ONNX Runtime's own error classes have no common base
                raise self._failure(name, error) from error
            _check_shape(name, binding.get_outputs()[0].shape(), rows, output)
            return binding.copy_outputs_to_cpu()[0] if target is None else None

    def _place(self) -> tuple[str, int]:
        """Return the GPU as ONNX Runtime names it."""
        return "cuda", int(self.device.partition(":")[2])

    def _failure(self, name: str, error: Exception) -> PspError:
        if self.device == "cpu" and (lack := out_of_memory(error, f"running the {name}", LESS_MEMORY)):
            return lack
        return BackendError(f"ONNX Runtime failed in the {name} on {self.device}: {error}")


def _session(
    engine: EngineFile, name: str, graph: bytes, device: str, threads: int
) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; warnings about shape operators on the CPU are of no use to users
    entries = {
        "session.load_model_format": "ONNX",  # never its own format, which it detects by content
        # The weights' folder; ONNX Runtime refuses to leave it through a symbolic link.
        "session.model_external_initializers_file_folder_path": str(
            Path(os.path.realpath(engine.path)).parent
        ),
        # Weights in their own allocation instead of the arena, which grows by doubling: measured, 1.2 s
        # instead of 2.1 s to load 377 MB.
        "session.use_device_allocator_for_initializers": "1",
    }
    providers: list[Any] = ["CPUExecutionProvider"]
    if device != "cpu":
        entries["session.record_ep_graph_assignment_info"] = "1"
        settings = {"device_id": device.partition(":")[2], "use_tf32": "0"}  # TF32 misses the parity bar
        providers.insert(0, (CUDA_PROVIDER, settings))
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's own error classes have no common base
        if device == "cpu" and (lack := out_of_memory(error, f"loading the {name}", LESS_MEMORY)):
            raise lack from error
        kind = FormatError if device == "cpu" or type(error).__name__ in _OF_THE_GRAPH else BackendError
        raise kind(f"{engine.path}: {name}.onnx cannot be loaded on {device}: {error}") from error
    session.disable_fallback()  # or a run that fails on the GPU would move to the CPU for good
    if device != "cpu" and CUDA_PROVIDER not in session.get_providers():
        raise DeviceError(
            f"ONNX Runtime fell back from {device} to the CPU for the {name}, usually because CUDA or cuDNN "
            f"libraries are missing; install them with: {INSTALL_CUDA}"
        )
    return session


def _left_on_cpu(sessions: Iterable[Any]) -> str:
    """Return how many nodes ONNX Runtime did not put on the GPU, if it tells (since 1.24)."""
    parts = [
        (part.ep_name, len(part.get_nodes()))
        for session in sessions
        if hasattr(session, "get_provider_graph_assignment_info")
        for part in session.get_provider_graph_assignment_info()
    ]
    on_cpu = sum(nodes for provider, nodes in parts if provider != CUDA_PROVIDER)
    return f", {on_cpu} of {sum(nodes for _, nodes in parts)} nodes on the CPU" if on_cpu else ""


def _check_ports(title: str, session: Any, inputs: list[Port], outputs: list[Port]) -> None:
    for kind, found, expected in (
        ("input", session.get_inputs(), inputs),
        ("output", session.get_outputs(), outputs),
    ):
        try:
            ports = [_found(port) for port in found]
        except UnicodeDecodeError:
            raise FormatError(
                f"{title} has an {kind} whose name is not text; export the engine again"
            ) from None
        check_ports(title, kind, ports, expected)


def _check_shape(name: str, found: Iterable[int], rows: int, output: Port) -> None:
    if tuple(found) != (rows, *output.shape):
        raise FormatError(f"{name}.onnx gave {list(found)}; the manifest promises {[rows, *output.shape]}")


def _found(port: Any) -> FoundPort:
    shape = tuple(size if isinstance(size, int) else None for size in port.shape)
    return FoundPort(name=port.name, dtype=_TYPES.get(port.type, port.type), shape=shape)
