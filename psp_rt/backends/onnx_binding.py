"""Runs of ONNX Runtime between memory that is named beforehand, so that codes stay where they are made.

ONNX Runtime works in streams of its own and waits for them at the end of a run: what is bound must be ready
before, and is done after. What it records as CUDA graphs is in `onnx_graphs`.

With CUDA it has not run on a GPU yet; the tests bind memory of the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cuda.gpu_call import GpuCall, GpuRequest
from ..cuda.work import Stream
from ..engine.manifest import Manifest
from ..engine.ports import Port, graph_ports
from ..errors import BackendError, FormatError, PspError
from ..images import Pixels
from ..style import Codes
from .onnx_rows import CODES, ROWS, TAKEN, row_session
from .parts import style_parts


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes where the graphs run, as a tensor."""

    address: int
    shape: tuple[int, ...]
    dtype: str
    stream: Stream  # to copy them in; their content is there already

    @property
    def nbytes(self) -> int:
        """Return the size in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(kw_only=True)
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
            codes = self._kept(self._encoded(part, len(part)))
            for image, styles in style_parts(len(part), len(reference), most):
                rows = [image] * (styles.stop - styles.start)
                mix = reference[styles], weights[styles]
                results[at + image, styles] = self._generated(codes, rows, *mix)
        return results.reshape(-1, *self._picture.shape)

    def translate_on_gpu(self, call: GpuCall, request: GpuRequest, stream: Stream) -> None:
        """Translate images to pictures, both in memory of the device; a stream is lent for copies."""
        styles, most = len(request.reference), request.max_batch
        images_at_once = most // styles
        for part in call.parts(images_at_once or most):
            codes = self._encoded(self._memory(part.source, part.images, self._image, stream), part.images)
            if images_at_once:
                target = self._memory(part.target, part.images * styles, self._picture, stream)
                rows = _each(part.images, styles)
                self._generate_to(target, codes, rows, request.reference, request.weights)
                continue
            codes = self._kept(codes)
            for image, chosen in style_parts(part.images, styles, most):
                rows = [image] * (chosen.stop - chosen.start)
                address = call.target_at(part.first + image, chosen.start)
                target = self._memory(address, len(rows), self._picture, stream)
                self._generate_to(target, codes, rows, request.reference[chosen], request.weights[chosen])

    @property
    def _here(self) -> tuple[str, int]:
        """Return the device as ONNX Runtime names it."""
        return _place(self.device)

    @property
    def _image(self) -> Port:
        return graph_ports(self.manifest, "encoder")[0][0]

    @property
    def _picture(self) -> Port:
        return graph_ports(self.manifest, "generator")[1][0]

    def _memory(self, address: int, rows: int, port: Port, stream: Stream) -> Memory:
        return Memory(address=address, shape=(rows, *port.shape), dtype=port.dtype, stream=stream)

    def _encoded(self, images: Pixels | Memory, count: int) -> Any:
        """Return codes [N, L, D] on the device."""
        return self._run("encoder", count, {"image": images}, where=self.device).get_outputs()[0]

    def _kept(self, codes: Any) -> Any:
        """Return codes that stay while others are generated from: they do so here."""
        return codes

    def _generated(self, codes: Any, rows: list[int], reference: Codes, weights: Codes) -> Pixels:
        """Return pictures of rows of codes on the host; the styles are those of each image together."""
        feeds = {"codes": self._rows_of(codes, rows), **mix(len(rows), reference, weights)}
        pictures: Pixels = self._run("generator", len(rows), feeds, where="cpu").copy_outputs_to_cpu()[0]
        return pictures

    def _generate_to(
        self, target: Memory, codes: Any, rows: list[int], reference: Codes, weights: Codes
    ) -> None:
        feeds = {"codes": self._rows_of(codes, rows), **mix(len(rows), reference, weights)}
        self._run("generator", len(rows), feeds, where=self.device, target=target)

    def _rows_of(self, codes: Any, rows: list[int]) -> Any:
        """Return rows of codes on the device, where they are if it is all of them."""
        return codes if rows == list(range(codes.shape()[0])) else self._copied(codes, rows)

    def _copied(self, codes: Any, rows: list[int], *, to: Any = None) -> Any:
        """Return a copy of rows of codes on the device, in memory that is new or in an OrtValue's."""
        with self._failing("copying codes"):
            session = row_session(*self._here)
            binding = session.io_binding()
            binding.bind_ortvalue_input(CODES, codes)
            binding.bind_cpu_input(ROWS, np.array(rows, np.int64))
            if to is None:
                binding.bind_output(TAKEN, *self._here)
            else:
                binding.bind_ortvalue_output(TAKEN, to)
            session.run_with_iobinding(binding)
        return binding.get_outputs()[0]

    def _run(
        self, name: str, rows: int, feeds: dict[str, Any], *, where: str, target: Memory | None = None
    ) -> Any:
        """Return the binding of a run that is over; its output is on a device, or in the target."""
        output = graph_ports(self.manifest, name)[1][0]
        with self._failing(f"the {name}"):
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
        expected = [rows, *output.shape]
        found = list(binding.get_outputs()[0].shape())
        if found != expected:
            raise FormatError(f"{name}.onnx gave {found}; the manifest promises {expected}")
        return binding

    def _bind_input(self, binding: Any, key: str, value: Any) -> None:
        if isinstance(value, np.ndarray):
            binding.bind_cpu_input(key, np.ascontiguousarray(value))
        elif isinstance(value, Memory):
            binding.bind_input(key, *self._here, np.dtype(value.dtype), value.shape, value.address)
        else:
            binding.bind_ortvalue_input(key, value)

    @contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        """Turn an error of ONNX Runtime into ours."""
        try:
            yield
        except PspError:
            raise
        except Exception as error:  # ONNX Runtime's own kinds share no root
            raise BackendError(f"ONNX Runtime failed in {what} on {self.device}: {error}") from error


def mix(rows: int, reference: Codes, weights: Codes) -> dict[str, Codes]:
    """Return K styles [K, L, D] for each of the images, as the generator takes them."""
    images = rows // len(reference)
    return {"reference": np.tile(reference, (images, 1, 1)), "weights": np.tile(weights, (images, 1))}


def _each(images: int, styles: int) -> list[int]:
    """Return the row of the code of every picture."""
    return [image for image in range(images) for _ in range(styles)]


def _place(device: str) -> tuple[str, int]:
    """Return a device as ONNX Runtime names it."""
    kind, _, index = device.partition(":")
    return kind, int(index or 0)
