"""What runs the three graphs. A backend moves bytes and runs graphs; the graphs own the arithmetic.

N is the batch, K the number of styles mixed into each picture, L the rows of a code, D the style dimension. A
backend may be called by one thread at a time; a clone shares the weights and may run beside it.
"""

from __future__ import annotations

from typing import Any, Protocol

from ..cuda.gpu_call import GpuRequest
from ..engine.reader import EngineFile
from ..errors import DeviceError
from ..hardware.choose import Choice
from ..images import Pixels
from ..streaming import AtWork
from ..style import Codes


class Backend(Protocol):
    """The three graphs on one device."""

    @property
    def name(self) -> str:
        """Return "onnxruntime", "openvino" or "tensorrt"."""

    @property
    def device(self) -> str:
        """Return "cpu" or "cuda:N"."""

    @property
    def precision(self) -> str:
        """Return what it computes in: "fp32", "bf16" or "fp16"."""

    @property
    def description(self) -> str:
        """Return what it runs on, for the log."""

    def translate(self, images: Pixels, reference: Codes, weights: Codes) -> Pixels:
        """Return RGB [N * K, height, width, 3], the K styles of an image together.

        Args:
            images: [N, height, width, channels].
            reference: [K, L, D], mixed into the code of every image.
            weights: [K, L], how far each row moves.
        """

    def translate_in_parts(self, images: Pixels, reference: Codes, weights: Codes, *, most: int) -> Pixels:
        """Return the same for more styles than are generated at once; each image is encoded once.

        Args:
            images: [N, height, width, channels], any number.
            reference: [K, L, D].
            weights: [K, L].
            most: That may be encoded or generated at once.
        """

    def begin(self, images: Pixels, reference: Codes, weights: Codes) -> AtWork[Pixels] | None:
        """Begin what `translate` does beside the work begun before; None where that cannot be.

        The result may be waited for in any thread, also during other calls.
        """

    def translate_on_gpu(self, request: GpuRequest) -> Any:
        """Return the result of arrays on the GPU, as :meth:`psp_rt.Translator.run` describes it.

        Raises:
            InputError: The backend is not on CUDA, or an array or stream is not what it must be.
        """

    def encode(self, images: Pixels) -> Codes:
        """Return the codes [N, L, D] of images [N, height, width, channels]."""

    def map(self, z: Codes) -> Codes:
        """Return the styles w [N, D] of z [N, D]."""

    def generate(self, codes: Codes, reference: Codes, weights: Codes) -> Pixels:
        """Return RGB [N, height, width, 3] of codes and reference [N, L, D], mixed by weights [N, L]."""

    def clone(self) -> Backend:
        """Return a backend for another thread, on the same weights."""

    def close(self) -> None:
        """Let go of everything that no clone uses."""


def open_backend(
    engine: EngineFile, choice: Choice, *, threads: int | None = None, onnx_cuda_graphs: bool = False
) -> Backend:
    """Load an engine as chosen; only the chosen runtime is imported.

    Args:
        threads: On the CPU; None for one on each physical core.
        onnx_cuda_graphs: As :class:`psp_rt.Translator` has it.

    Raises:
        FormatError: A graph cannot be loaded, or its inputs or outputs are not the manifest's.
        DeviceError: The runtime does not give the device after all.
        BackendError: TensorRT refuses a plan, or the GPU has too little memory.
    """
    if onnx_cuda_graphs:
        _check_cuda_graphs(engine, choice)
    if choice.backend == "openvino":
        from .openvino.backend import OpenVinoBackend

        return OpenVinoBackend.open(engine, precision=choice.precision, threads=threads)
    if choice.backend == "tensorrt":
        from .tensorrt.backend import TensorRtBackend

        return TensorRtBackend.open(engine, device=choice.device, target=choice.plan)
    from .onnx_runtime import OnnxRuntimeBackend

    return OnnxRuntimeBackend.open(
        engine, device=choice.device, threads=threads, cuda_graphs=onnx_cuda_graphs
    )


def _check_cuda_graphs(engine: EngineFile, choice: Choice) -> None:
    if choice.backend != "onnxruntime" or choice.device == "cpu":
        raise DeviceError(
            f"onnx_cuda_graphs needs ONNX Runtime on CUDA, and this is {choice.backend} on {choice.device}; "
            "leave it out (TensorRT records CUDA graphs by itself), or pass backend='onnxruntime', "
            "device='cuda'"
        )
    if engine.manifest.noise == "random":
        raise DeviceError(
            "onnx_cuda_graphs would give the same noise at every run, and this engine has new noise each "
            "time; leave it out"
        )
