"""One translation of pictures on the GPU: what comes in, where results go, and the parts to run it in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..engine.manifest import InputSpec, Manifest
from ..errors import InputError
from ..style import Codes
from .arrays import DeviceArray
from .device import CudaDevice
from .foreign_arrays import GpuArray, borrow, foreign_stream, is_device_array
from .gpu_memory import GpuMemory
from .stream_forms import LEGACY_DEFAULT, stream_number
from .work import Stream


@dataclass(frozen=True, kw_only=True)
class GpuRequest:
    """What a caller asks for; the style is settled and mapped."""

    images: Any
    out: Any
    stream: Any
    reference: Codes  # [K, L, D]
    weights: Codes  # [K, L]
    several: bool  # whether results have an axis for the styles
    max_batch: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one run translates: N images, to all K styles, from one address to another."""

    first: int  # of the images
    images: int
    source: int
    target: int


@dataclass(frozen=True, kw_only=True)
class GpuCall:
    """Pictures on the GPU, and the memory for their results."""

    request: GpuRequest
    manifest: Manifest
    source: GpuArray
    count: int
    target: GpuArray
    returned: Any  # what the caller gets

    @classmethod
    def open(
        cls,
        request: GpuRequest,
        manifest: Manifest,
        *,
        device: CudaDevice,
        caller: Stream | None,
        own: Stream,
    ) -> GpuCall:
        """Check and take the arrays; both are ready for the caller's stream, or without one for our own.

        Raises:
            InputError: An array is not what it must be.
            BackendError: There is too little memory for the result.
        """
        assert manifest.input is not None
        consumer, assumed = (own, LEGACY_DEFAULT) if caller is None else (caller, None)
        take = partial(borrow, device=device, consumer=consumer, assumed=assumed)
        source = take(request.images, "the picture")
        count, single = _count(source.shape, manifest.input)
        styles = (len(request.reference),) if request.several else ()
        shape = (*(() if single else (count,)), *styles, manifest.output.height, manifest.output.width, 3)
        if request.out is None:
            target, returned = _new(shape, device, caller, request.stream)
        else:
            _check_kind(request.out, shape, device)
            target, returned = take(request.out, "out"), request.out
            _check_out(target, shape, source)
        return cls(
            request=request, manifest=manifest, source=source, count=count, target=target, returned=returned
        )

    def enqueued(self, stream: Stream) -> None:
        """Note that the results are there after what the stream holds now."""
        if isinstance(self.target.owner, GpuMemory):
            self.target.owner.ready.record(stream)

    def parts(self, most_images: int) -> Iterator[Part]:
        """Yield what to run one after the other, at most so many images at once."""
        for at in range(0, self.count, most_images):
            images = min(most_images, self.count - at)
            yield Part(first=at, images=images, source=self.source_at(at), target=self.target_at(at, 0))

    def source_at(self, image: int) -> int:
        """Return the address of an image."""
        spec = self.manifest.input
        assert spec is not None
        return self.source.address + image * spec.height * spec.width * spec.channels

    def target_at(self, image: int, style: int) -> int:
        """Return the address for the picture of an image in one of the styles."""
        output = self.manifest.output
        picture = image * len(self.request.reference) + style
        return self.target.address + picture * output.height * output.width * 3


def callers_stream(request: GpuRequest, device: CudaDevice) -> Stream | None:
    """Return the stream that the caller names, if any.

    Raises:
        InputError: It is none, belongs to another context, or is being captured.
    """
    if request.stream is None:
        return None
    stream = foreign_stream(stream_number(request.stream), "stream", device)
    if stream.being_captured():
        raise InputError(
            "stream is being captured; run() launches a graph of its own, so call it outside of your capture"
        )
    return stream


def _new(
    shape: tuple[int, ...], device: CudaDevice, caller: Stream | None, given: Any
) -> tuple[GpuArray, DeviceArray]:
    made_in = None if caller is None else caller.number
    memory = GpuMemory(device.index, math.prod(shape), stream=made_in, owner=given)
    target = GpuArray(address=memory.address, shape=shape, read_only=False, owner=memory)
    return target, DeviceArray(memory.address, shape, index=device.index, owner=memory, stream=made_in)


def _count(shape: tuple[int, ...], spec: InputSpec) -> tuple[int, bool]:
    """Return the number of pictures, and whether it is one alone."""
    forms: list[tuple[int, ...]] = [(spec.height, spec.width, spec.channels)]
    if spec.channels == 1:
        forms.append((spec.height, spec.width))
    if shape in forms:
        return 1, True
    if shape[1:] in forms:
        return shape[0], False
    wanted = " or ".join(f"{list(form)}, [N, {', '.join(map(str, form))}]" for form in forms)
    raise InputError(
        f"the picture on the GPU has shape {list(shape)}; expected {wanted}: there, nothing is resized or "
        "converted. Resize it first (torchvision, CuPy, cv2.cuda), or pass a NumPy array"
    )


def _check_kind(out: Any, shape: tuple[int, ...], device: CudaDevice) -> None:
    if not is_device_array(out):
        raise InputError(
            f"out is {type(out).__name__}; expected a uint8 array {list(shape)} on {device.name}, where the "
            "picture is"
        )


def _check_out(target: GpuArray, shape: tuple[int, ...], source: GpuArray) -> None:
    if target.shape != shape:
        raise InputError(f"out must be a uint8 array {list(shape)}, got {list(target.shape)}")
    if target.read_only:
        raise InputError("out is read-only; pass an array that can be written")
    before = target.address + math.prod(target.shape) <= source.address
    if not before and target.address < source.address + math.prod(source.shape):
        raise InputError("out shares memory with the picture; pass memory of its own")
