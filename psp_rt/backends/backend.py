"""The calls of a backend, as runs of the three graphs by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from ..cuda.gpu_call import GpuRequest
from ..errors import InputError
from ..images import Pixels
from ..streaming import AtWork
from ..style import Codes
from .parts import in_parts


class GraphCalls(ABC):
    """What every backend does alike; how a graph runs is its own."""

    name: str
    device: str

    def translate(self, images: Pixels, reference: Codes, weights: Codes) -> Pixels:
        """Return RGB [N * K, height, width, 3], the K styles of an image together."""
        codes = self.encode(images)
        return self.generate(
            np.repeat(codes, len(reference), axis=0),
            np.tile(reference, (len(codes), 1, 1)),
            np.tile(weights, (len(codes), 1)),
        )

    def translate_in_parts(self, images: Pixels, reference: Codes, weights: Codes, *, most: int) -> Pixels:
        """Return the same, generating at most so many pictures at once; each image is encoded once."""
        codes = in_parts(most, self.encode, images)
        return in_parts(
            most,
            self.generate,
            np.repeat(codes, len(reference), axis=0),
            np.tile(reference, (len(codes), 1, 1)),
            np.tile(weights, (len(codes), 1)),
        )

    def begin(self, images: Pixels, reference: Codes, weights: Codes) -> AtWork[Pixels] | None:
        """Return None: what runs one translation after another begins none beside others."""
        return None

    def translate_on_gpu(self, request: GpuRequest) -> Any:
        """Refuse arrays on a GPU; backends on CUDA take them."""
        raise InputError(
            "pictures on a GPU need device='cuda', with TensorRT or ONNX Runtime's CUDA provider; this "
            f"translator runs on {self.device} with {self.name}: pass NumPy arrays, tensor.cpu().numpy()"
        )

    def encode(self, images: Pixels) -> Codes:
        """Return codes [N, L, D]."""
        codes: Codes = self._run("encoder", {"image": images})
        return codes

    def map(self, z: Codes) -> Codes:
        """Return styles w [N, D]."""
        styles: Codes = self._run("mapping", {"z": z})
        return styles

    def generate(self, codes: Codes, reference: Codes, weights: Codes) -> Pixels:
        """Return RGB [N, height, width, 3]."""
        feeds = {"codes": codes, "reference": reference, "weights": weights}
        pictures: Pixels = self._run("generator", feeds)
        return pictures

    @abstractmethod
    def _run(self, name: str, feeds: dict[str, Any]) -> Any:
        """Return the output of a graph, memory of the caller's own, for inputs by their names."""
