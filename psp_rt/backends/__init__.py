"""The runtimes behind one interface. Private to psp_rt: programs use the Translator."""

from __future__ import annotations

from ..engine.reader import EngineFile
from ..hardware.choose import Choice
from ..native import calling, check_not_ending
from .backend import Backend


def open_backend(engine: EngineFile, choice: Choice, *, threads: int | None = None) -> Backend:
    """Load an engine as chosen; only the chosen runtime is imported.

    Args:
        engine: The engine.
        choice: What `psp_rt.hardware.choose` returned.
        threads: CPU threads; None for one on each physical core.

    Raises:
        FormatError: A graph cannot be loaded, or its inputs or outputs are not the manifest's.
        DeviceError: The runtime does not provide the device after all.
        BackendError: TensorRT refuses a plan, or the GPU has too little memory.
    """
    with calling():
        check_not_ending()
        return _open(engine, choice, threads)


def _open(engine: EngineFile, choice: Choice, threads: int | None) -> Backend:
    if choice.backend == "openvino":
        from .openvino.backend import OpenVinoBackend

        return OpenVinoBackend.open(engine, precision=choice.precision, threads=threads)
    if choice.backend == "tensorrt":
        from .tensorrt.backend import TensorRtBackend

        return TensorRtBackend.open(engine, device=choice.device, target=choice.plan)
    from .onnx_runtime import OnnxRuntimeBackend

    return OnnxRuntimeBackend.open(engine, device=choice.device, threads=threads)
