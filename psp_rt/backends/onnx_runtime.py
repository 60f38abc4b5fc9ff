"""The graphs on ONNX Runtime, on the CPU or through its CUDA provider.

On CUDA a translation keeps its codes on the GPU, and pictures on the GPU are read and written where they are.

Weights are mapped from the engine file by ONNX Runtime itself, not handed over as buffers. Measured
with 377 MB of 3x3 convolutions on the CPU: 0.8 GB resident and loaded in 1.2 s mapped, 1.5 GB and
2.1 s as buffers (and the call for buffers is missing on Python 3.10, whose last release is 1.23).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cuda.device import CudaDevice
from ..cuda.gpu_call import GpuCall, GpuRequest, callers_stream
from ..cuda.work import Resources
from ..engine.graph import WeightsPointer
from ..engine.manifest import Manifest
from ..engine.ports import GRAPHS, FoundPort, Port, check_ports, graph_ports
from ..engine.reader import EngineFile
from ..errors import BackendError, DeviceError, FormatError
from ..hardware.probe import CUDA_PROVIDER, INSTALL_CUDA, default_threads
from ..images import Pixels
from ..style import Codes
from .backend import GraphCalls
from .onnx_binding import BoundGraphs
from .onnx_graphs import RecordedGraphs

if TYPE_CHECKING:
    import onnxruntime

_OF_THE_GRAPH = {"InvalidGraph", "InvalidProtobuf", "NotImplemented", "NoSuchFile"}  # ONNX Runtime's errors
_TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


class OnnxRuntimeBackend(GraphCalls):
    """Sessions for the graphs of one engine; they may be run by several threads at once."""

    name = "onnxruntime"
    precision = "fp32"

    def __init__(
        self,
        sessions: dict[str, Any],
        manifest: Manifest,
        device: str,
        description: str,
        recorded: RecordedGraphs | None = None,
    ) -> None:
        self._sessions = sessions
        self._manifest = manifest
        self.device = device
        self.description = description
        self._recorded = recorded

    @classmethod
    def open(
        cls, engine: EngineFile, *, device: str, threads: int | None = None, cuda_graphs: bool = False
    ) -> OnnxRuntimeBackend:
        """Load the graphs, all at once: mistakes come now, and the first picture is not a slow one.

        Args:
            device: "cpu" or "cuda:N".
            threads: On the CPU; by default one for each physical core.
            cuda_graphs: Record encoder and generator as CUDA graphs.

        Raises:
            FormatError: A graph cannot be loaded, or its inputs or outputs are not the manifest's.
            DeviceError: ONNX Runtime does not give the device after all.
        """
        import onnxruntime

        threads = default_threads() if threads is None else threads
        if device != "cpu" and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # finds CUDA and cuDNN that pip installed
        names = [name for name in GRAPHS if f"{name}.onnx" in engine.names]
        sessions = {
            name: _session(engine, name, device, threads, cuda_graph=cuda_graphs and name != "mapping")
            for name in names
        }
        engine.check_unchanged()
        for name, session in sessions.items():
            _check_ports(f"{engine.path}: {name}.onnx", session, *graph_ports(engine.manifest, name))
        where = f"{threads or 'all'} threads" if device == "cpu" else device + _left_on_cpu(sessions.values())
        if device != "cpu":
            where += f", {'with' if cuda_graphs else 'without'} CUDA graphs"
        recorded = RecordedGraphs(sessions=sessions, manifest=engine.manifest, device=device)
        return cls(
            sessions,
            engine.manifest,
            device,
            f"ONNX Runtime {onnxruntime.__version__}, {where}",
            recorded if cuda_graphs else None,
        )

    def translate(self, images: Pixels, reference: Codes, weights: Codes) -> Pixels:
        """Return RGB [N * K, height, width, 3], the K styles of an image together."""
        if self.device == "cpu":
            return super().translate(images, reference, weights)
        return self._bound.translate(images, reference, weights)

    def translate_in_parts(self, images: Pixels, reference: Codes, weights: Codes, *, most: int) -> Pixels:
        """Return the same, generating at most so many styles at once; each image is encoded once."""
        if self.device == "cpu":
            return super().translate_in_parts(images, reference, weights, most=most)
        return self._bound.translate_in_parts(images, reference, weights, most=most)

    def translate_on_gpu(self, request: GpuRequest) -> Any:
        """Translate arrays on the GPU, where they are; returns when the result is there."""
        if self.device == "cpu":
            return super().translate_on_gpu(request)
        device = CudaDevice(int(self.device.partition(":")[2]))
        with closing(device), device.current(), closing(Resources(device)) as made:
            caller, own = callers_stream(request, device), made.stream()
            call = GpuCall.open(request, self._manifest, device=device, caller=caller, own=own)
            (caller or own).synchronize()  # ONNX Runtime's own streams know nothing of these
            self._bound.translate_on_gpu(call, request, own)
        return call.returned

    def clone(self) -> OnnxRuntimeBackend:
        """Return a backend on the same sessions; with CUDA graphs the two take turns."""
        recorded = self._recorded and self._recorded.share()
        return OnnxRuntimeBackend(
            dict(self._sessions), self._manifest, self.device, self.description, recorded
        )

    def close(self) -> None:
        """Let go of the sessions; they end with the last clone."""
        self._sessions = {}
        if self._recorded is not None:
            self._recorded.release()
        self._recorded = None

    @property
    def _bound(self) -> BoundGraphs:
        if self._recorded is not None:
            return self._recorded
        return BoundGraphs(sessions=self._sessions, manifest=self._manifest, device=self.device)

    def _run(self, name: str, feeds: dict[str, Any]) -> Any:
        if self._recorded is not None and name != "mapping":
            return self._recorded.run(name, feeds)
        output = graph_ports(self._manifest, name)[1][0]
        try:
            (result,) = self._sessions[name].run([output.name], feeds)
        except Exception as error:  # ONNX Runtime's own kinds share no root
            raise BackendError(f"ONNX Runtime failed in the {name} on {self.device}: {error}") from error
        expected = (len(next(iter(feeds.values()))), *output.shape)
        if result.shape != expected:
            raise FormatError(
                f"{name}.onnx gave {list(result.shape)}; the manifest promises {list(expected)}"
            )
        return result


def _session(
    engine: EngineFile, name: str, device: str, threads: int, *, cuda_graph: bool
) -> onnxruntime.InferenceSession:
    import onnxruntime

    real = Path(os.path.realpath(engine.path))  # ONNX Runtime refuses to leave the folder through a link
    weights_name = f"{name}.weights"
    pointer = WeightsPointer(
        f"{engine.path}: {name}.onnx",
        file_name=real.name,
        weights_name=weights_name,
        weights=engine.span(weights_name) if weights_name in engine.names else None,
    )
    with engine.view(f"{name}.onnx") as graph:
        model = pointer.rewrite(graph)
    options = _options(real.parent, threads)
    if device != "cpu":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = onnxruntime.InferenceSession(
            model, options, providers=_providers(device, cuda_graph), enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's own kinds share no root
        instead = "; open it without onnx_cuda_graphs" if cuda_graph else ""
        kind = FormatError if device == "cpu" or type(error).__name__ in _OF_THE_GRAPH else BackendError
        raise kind(f"{engine.path}: {name}.onnx cannot be loaded on {device}: {error}{instead}") from error
    session.disable_fallback()  # or a run that fails on the GPU would move to the CPU, for good
    if device != "cpu" and CUDA_PROVIDER not in session.get_providers():
        raise DeviceError(
            f"ONNX Runtime fell back from {device} to the CPU for the {name}, usually for want of CUDA "
            f"or cuDNN libraries; mend it with: {INSTALL_CUDA}"
        )
    return session


def _options(folder: Path, threads: int) -> onnxruntime.SessionOptions:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; warnings about shape operators on the CPU tell users nothing
    options.add_session_config_entry(
        "session.load_model_format", "ONNX"
    )  # never its own format, found by sniffing
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    # Weights in their own allocation instead of the arena, which grows by doubling: measured, 1.2 s
    # instead of 2.1 s to load 377 MB.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    return options


def _left_on_cpu(sessions: Iterable[Any]) -> str:
    """Say how many nodes ONNX Runtime has not put on the GPU, where it tells (since 1.24)."""
    parts = [
        (part.ep_name, len(part.get_nodes()))
        for session in sessions
        if hasattr(session, "get_provider_graph_assignment_info")
        for part in session.get_provider_graph_assignment_info()
    ]
    on_cpu = sum(nodes for provider, nodes in parts if provider != CUDA_PROVIDER)
    return f", {on_cpu} of {sum(nodes for _, nodes in parts)} nodes on the CPU" if on_cpu else ""


def _providers(device: str, cuda_graph: bool) -> list[Any]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    settings = {
        "device_id": device.partition(":")[2],
        "use_tf32": "0",  # TF32 misses the parity bar
        "enable_cuda_graph": str(int(cuda_graph)),
    }
    return [(CUDA_PROVIDER, settings), "CPUExecutionProvider"]


def _check_ports(what: str, session: Any, inputs: list[Port], outputs: list[Port]) -> None:
    for kind, found, expected in (
        ("input", session.get_inputs(), inputs),
        ("output", session.get_outputs(), outputs),
    ):
        try:
            ports = [_found(port) for port in found]
        except UnicodeDecodeError:
            raise FormatError(
                f"{what} has an {kind} whose name is no text; export the engine again"
            ) from None
        check_ports(what, kind, ports, expected)


def _found(port: Any) -> FoundPort:
    shape = tuple(size if isinstance(size, int) else None for size in port.shape)
    return FoundPort(name=port.name, dtype=_TYPES.get(port.type, port.type), shape=shape)
