"""Runs of ONNX Runtime between memory that is named beforehand, so that codes stay where they are made.

ONNX Runtime works in streams of its own and waits for them at the end of a run: what is bound must be ready
before, and is done after. It records no CUDA graphs here: one of its sessions records for one set of
addresses and shapes, and ours take any batch.

With CUDA it has not run on a GPU yet; the tests bind memory of the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import BackendError, FormatError
from ..gpu_call import Part
from ..images import Pixels
from ..manifest import Manifest
from ..style import Codes
from .ports import graph_ports


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes where the graphs run, as a tensor."""

    address: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class BoundGraphs:
    """Encoder and generator, and the device that they run on."""

    sessions: dict[str, Any]
    manifest: Manifest
    device: str  # "cpu" or "cuda:N"

    def translate(self, images: Pixels, reference: Codes, weights: Codes) -> Pixels:
        """Return RGB [N * K, height, width, 3] of images on the host, [N, height, width, channels]."""
        binding = self._translated(images, len(images), reference, weights, None)
        pictures: Pixels = binding.copy_outputs_to_cpu()[0]
        return pictures

    def translate_part(self, part: Part) -> None:
        """Translate images to pictures, both in memory of the device."""
        ports = graph_ports(self.manifest, "encoder")[0], graph_ports(self.manifest, "generator")[1]
        image, picture = (port for (port,) in ports)
        count = part.images * len(part.reference)
        source = Memory(address=part.source, shape=(part.images, *image.shape), dtype=image.dtype)
        target = Memory(address=part.target, shape=(count, *picture.shape), dtype=picture.dtype)
        self._translated(source, part.images, part.reference, part.weights, target)

    def _translated(
        self,
        images: Pixels | Memory,
        count: int,
        reference: Codes,
        weights: Codes,
        target: Memory | None,
    ) -> Any:
        encoded = self._run("encoder", count, {"image": images}, where=self.device)
        codes: Any = encoded.get_outputs()[0]
        if len(reference) > 1:  # nothing here copies on the GPU, and a code is 36 KB at 1024 pixels
            codes = np.repeat(codes.numpy(), len(reference), axis=0)
        feeds = {
            "codes": codes,
            "reference": np.tile(reference, (count, 1, 1)),
            "weights": np.tile(weights, (count, 1)),
        }
        where = "cpu" if target is None else self.device
        return self._run("generator", count * len(reference), feeds, where=where, target=target)

    def _run(
        self, name: str, rows: int, feeds: dict[str, Any], *, where: str, target: Memory | None = None
    ) -> Any:
        """Return the binding of a run that is over; its output is on a device, or in the target."""
        output = graph_ports(self.manifest, name)[1][0]
        try:
            binding = self.sessions[name].io_binding()
            for key, value in feeds.items():
                self._bind_input(binding, key, value)
            if target is None:
                binding.bind_output(output.name, *_place(where))
            else:
                binding.bind_output(
                    output.name, *_place(where), np.dtype(target.dtype), target.shape, target.address
                )
            binding.synchronize_inputs()
            self.sessions[name].run_with_iobinding(binding)
            binding.synchronize_outputs()
        except Exception as error:  # ONNX Runtime's own kinds share no root
            raise BackendError(f"ONNX Runtime failed in the {name} on {self.device}: {error}") from error
        expected = [rows, *output.shape]
        found = list(binding.get_outputs()[0].shape())
        if found != expected:
            raise FormatError(f"{name}.onnx gave {found}; the manifest promises {expected}")
        return binding

    def _bind_input(self, binding: Any, key: str, value: Any) -> None:
        if isinstance(value, np.ndarray):
            binding.bind_cpu_input(key, np.ascontiguousarray(value))
        elif isinstance(value, Memory):
            place = _place(self.device)
            binding.bind_input(key, *place, np.dtype(value.dtype), value.shape, value.address)
        else:
            binding.bind_ortvalue_input(key, value)


def _place(device: str) -> tuple[str, int]:
    """Return a device as ONNX Runtime names it."""
    kind, _, index = device.partition(":")
    return kind, int(index or 0)
