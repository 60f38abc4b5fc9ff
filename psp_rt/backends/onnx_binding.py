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

from ..errors import BackendError, FormatError, PspError
from ..gpu_call import GpuCall, GpuRequest
from ..images import Pixels
from ..manifest import Manifest
from ..parts import style_parts
from ..style import Codes
from .onnx_rows import CODES, ROWS, TAKEN, row_session
from .ports import Port, graph_ports


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
        codes = self._encoded(images, len(images))
        return self._generated(codes, _each(len(images), len(reference)), reference, weights)

    def translate_in_parts(self, images: Pixels, reference: Codes, weights: Codes, *, most: int) -> Pixels:
        """Return the same, generating at most so many styles at once; each image is encoded once."""
        results = np.empty((len(images), len(reference), *self._picture.shape), self._picture.dtype)
        for at in range(0, len(images), most):
            part = images[at : at + most]
            codes = self._encoded(part, len(part))
            for image, styles in style_parts(len(part), len(reference), most):
                rows = [image] * (styles.stop - styles.start)
                mix = reference[styles], weights[styles]
                results[at + image, styles] = self._generated(codes, rows, *mix)
        return results.reshape(-1, *self._picture.shape)

    def translate_on_gpu(self, call: GpuCall, request: GpuRequest) -> None:
        """Translate images to pictures, both in memory of the device."""
        styles = len(request.reference)
        images_at_once = request.max_batch // styles
        for part in call.parts(images_at_once or request.max_batch):
            codes = self._encoded(self._memory(part.source, part.images, self._image), part.images)
            if images_at_once:
                rows = _each(part.images, styles)
                self._generate_to(part.target, codes, rows, request.reference, request.weights)
                continue
            for image, chosen in style_parts(part.images, styles, request.max_batch):
                rows = [image] * (chosen.stop - chosen.start)
                target = call.target_at(part.first + image, chosen.start)
                self._generate_to(target, codes, rows, request.reference[chosen], request.weights[chosen])

    @property
    def _image(self) -> Port:
        return graph_ports(self.manifest, "encoder")[0][0]

    @property
    def _picture(self) -> Port:
        return graph_ports(self.manifest, "generator")[1][0]

    def _memory(self, address: int, rows: int, port: Port) -> Memory:
        return Memory(address=address, shape=(rows, *port.shape), dtype=port.dtype)

    def _encoded(self, images: Pixels | Memory, count: int) -> Any:
        """Return codes [N, L, D] on the device."""
        return self._run("encoder", count, {"image": images}, where=self.device).get_outputs()[0]

    def _generated(self, codes: Any, rows: list[int], reference: Codes, weights: Codes) -> Pixels:
        """Return pictures of rows of codes on the host; the styles are those of each image together."""
        feeds = self._feeds(codes, rows, reference, weights)
        pictures: Pixels = self._run("generator", len(rows), feeds, where="cpu").copy_outputs_to_cpu()[0]
        return pictures

    def _generate_to(
        self, address: int, codes: Any, rows: list[int], reference: Codes, weights: Codes
    ) -> None:
        feeds, target = (
            self._feeds(codes, rows, reference, weights),
            self._memory(address, len(rows), self._picture),
        )
        self._run("generator", len(rows), feeds, where=self.device, target=target)

    def _feeds(self, codes: Any, rows: list[int], reference: Codes, weights: Codes) -> dict[str, Any]:
        images = len(rows) // len(reference)
        return {
            "codes": self._taken(codes, rows),
            "reference": np.tile(reference, (images, 1, 1)),
            "weights": np.tile(weights, (images, 1)),
        }

    def _taken(self, codes: Any, rows: list[int]) -> Any:
        """Return rows of codes on the device, where they are."""
        if rows == list(range(codes.shape()[0])):
            return codes
        place = _place(self.device)
        try:
            session = row_session(*place)
            binding = session.io_binding()
            binding.bind_ortvalue_input(CODES, codes)
            binding.bind_cpu_input(ROWS, np.array(rows, np.int64))
            binding.bind_output(TAKEN, *place)
            session.run_with_iobinding(binding)
        except PspError:
            raise
        except Exception as error:  # ONNX Runtime's own kinds share no root
            raise BackendError(f"ONNX Runtime cannot copy codes on {self.device}: {error}") from error
        return binding.get_outputs()[0]

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


def _each(images: int, styles: int) -> list[int]:
    """Return the row of the code of every picture."""
    return [image for image in range(images) for _ in range(styles)]


def _place(device: str) -> tuple[str, int]:
    """Return a device as ONNX Runtime names it."""
    kind, _, index = device.partition(":")
    return kind, int(index or 0)
