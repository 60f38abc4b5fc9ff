"""The one interface of all backends, with what they do alike.

A backend moves bytes and runs graphs; the graphs own the arithmetic. N is the batch, K the number of styles
mixed into each picture, L ``num_styles`` and D ``style_dim`` of the manifest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..style import Codes

if TYPE_CHECKING:
    from ..images import Pixels

LESS_MEMORY = "open the engine with a smaller max_batch, or free memory"

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, kw_only=True, eq=False)
class Styles:
    """K styles, and how far each row of a code moves towards them."""

    reference: Codes  # [K, L, D]
    weights: Codes  # [K, L]

    def __len__(self) -> int:
        return len(self.reference)

    def repeated(self, images: int) -> tuple[Codes, Codes]:
        """Return reference [N * K, L, D] and weights [N * K, L] for N images, styles varying fastest."""
        if images == 1:
            return self.reference, self.weights
        return np.tile(self.reference, (images, 1, 1)), np.tile(self.weights, (images, 1))

    def mixed_into(self, codes: Codes) -> tuple[Codes, Codes, Codes]:
        """Return the generator's inputs for codes [N, L, D]: codes, reference and weights, N * K of each."""
        return (np.repeat(codes, len(self), axis=0), *self.repeated(len(codes)))


@dataclass(frozen=True, kw_only=True)
class GpuRequest:
    """A call with pictures in GPU memory; see `psp_rt.Translator.run`."""

    images: Any
    styles: Styles
    has_style_axis: bool
    max_batch: int
    out: Any
    stream: Any


class Backend(ABC):
    """Runs the three graphs of an engine on one device.

    A subclass implements `run_graph`. TensorRT also overrides `translate`, to run everything as one CUDA
    graph. A subclass is `calling` (`psp_rt.native`) while it is in its runtime, and `owns` what it opens.
    One thread at a time may call a backend; a clone shares the weights and can be used by another thread.

    Attributes:
        name: "onnxruntime", "openvino" or "tensorrt".
        device: "cpu" or "cuda:N".
        precision: "fp32", "bf16" or "fp16".
        description: What it runs on, for the log.
    """

    name: str
    device: str
    precision: str
    description: str

    @abstractmethod
    def run_graph(self, name: str, inputs: dict[str, npt.NDArray[Any]]) -> Any:
        """Run one graph on a batch and return its output, in memory that the caller owns."""

    @abstractmethod
    def clone(self) -> Backend:
        """Return a backend for another thread, on the same weights."""

    @abstractmethod
    def close(self) -> None:
        """Release everything that no clone uses. Closing twice is allowed."""

    def encode(self, images: Pixels) -> Codes:
        """Return the codes [N, L, D] of images [N, height, width, channels]."""
        codes: Codes = self.run_graph("encoder", {"image": images})
        return codes

    def map(self, z: Codes) -> Codes:
        """Return the styles w [N, D] of z [N, D]."""
        styles: Codes = self.run_graph("mapping", {"z": z})
        return styles

    def generate(self, codes: Codes, reference: Codes, weights: Codes) -> Pixels:
        """Return RGB [N, height, width, 3] of codes and reference [N, L, D], mixed by weights [N, L]."""
        pictures: Pixels = self.run_graph(
            "generator", {"codes": codes, "reference": reference, "weights": weights}
        )
        return pictures

    def translate(
        self,
        images: Pixels,
        styles: Styles,
        *,
        max_batch: int,
        see: Callable[[Codes], object] = lambda codes: None,
    ) -> Pixels:
        """Return RGB [N * K, height, width, 3]: each of N images in each of K styles, styles varying fastest.

        At most ``max_batch`` pictures are encoded or generated at once; each image is encoded once. ``see``
        is given the codes on the way, in parts, where they pass through the host.
        """

        def translate_part(part: Pixels) -> Pixels:
            codes = self.encode(part)
            see(codes)
            return in_parts(max_batch, self.generate, *styles.mixed_into(codes))

        return in_parts(max_batch // len(styles) or max_batch, translate_part, images)

    def translate_on_gpu(self, request: GpuRequest) -> Any:
        """Return the result of pictures in GPU memory; only backends on CUDA take them."""
        raise InputError(
            "pictures on a GPU need device='cuda', with TensorRT or ONNX Runtime's CUDA provider; this "
            f"translator runs on {self.device} with {self.name}: pass NumPy arrays, tensor.cpu().numpy()"
        )

    def bare(self, name: str) -> Any:
        """Return the runtime's own object that runs a graph; see `psp_rt.Translator.bare`."""
        raise InputError(f"{self.name} has no session for one graph; use onnxruntime or openvino")


def in_parts(
    largest: int, graph: Callable[..., npt.NDArray[Scalar]], *inputs: npt.NDArray[Any]
) -> npt.NDArray[Scalar]:
    """Run a graph on a batch, in parts of at most ``largest``."""
    starts = range(0, len(inputs[0]), largest)
    parts = [graph(*(np.ascontiguousarray(part[at : at + largest]) for part in inputs)) for at in starts]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
