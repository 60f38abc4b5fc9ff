"""Arrays that other libraries have on a GPU, taken without a copy.

DLPack comes first where there are both: its producer lets our stream wait for the one that it works in.
Numba's ``__cuda_array_interface__`` may name that stream; where it does not, the legacy default stream is
waited for. Every address is shown to the driver before it is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import BackendError, InputError
from . import dlpack
from .device import CudaDevice
from .stream_forms import LEGACY_DEFAULT
from .work import Resources, Stream

ON_GPU = (dlpack.CUDA, dlpack.CUDA_MANAGED)
SHARE_CONTEXT = (
    "psp_rt works in the primary context of the translator's GPU: with pycuda, import pycuda.autoprimaryctx "
    "instead of pycuda.autoinit"
)


@dataclass(frozen=True, kw_only=True)
class GpuArray:
    """Bytes of another library on our GPU, one after the other."""

    address: int
    shape: tuple[int, ...]
    read_only: bool
    owner: Any  # keeps the memory


def is_device_array(value: Any) -> bool:
    """Return whether a value is an array in the memory of an NVIDIA GPU."""
    if isinstance(value, (np.ndarray, type)):
        return False
    try:
        if hasattr(type(value), "__dlpack_device__"):
            return int(value.__dlpack_device__()[0]) in ON_GPU
        return getattr(value, "__cuda_array_interface__", None) is not None
    except Exception:  # whatever a library raises for a tensor that has no memory
        return False


def borrow(
    value: Any, what: str, *, device: CudaDevice, consumer: Stream, assumed: int | None = LEGACY_DEFAULT
) -> GpuArray:
    """Return a uint8 array of another library; its content is there for what ``consumer`` does from now on.

    Args:
        value: What `is_device_array` says yes to.
        what: Its name, for messages.
        device: Ours, whose context is current.
        consumer: A stream on it.
        assumed: The stream to wait for where the array names none; None for none.

    Raises:
        InputError: It is on another GPU, not uint8, or not without gaps.
    """
    if hasattr(type(value), "__dlpack_device__"):
        array, strides = _by_dlpack(value, what, device, consumer)
    else:
        array, strides = _by_interface(value, what, device, consumer, assumed)
    _check_contiguous(array.shape, strides, what)
    _check_place(array.address, what, device)
    return array


def _by_dlpack(
    value: Any, what: str, device: CudaDevice, consumer: Stream
) -> tuple[GpuArray, tuple[int, ...] | None]:
    _check_index(int(value.__dlpack_device__()[1]), what, device)  # before its library enqueues anything
    try:
        try:
            capsule = value.__dlpack__(stream=consumer.number, max_version=(1, 0))
        except TypeError:  # a library from before DLPack 1.0
            capsule = value.__dlpack__(stream=consumer.number)
    except (BufferError, RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"{what} cannot be taken through DLPack: {error}") from error
    lent = dlpack.read(capsule)
    _check_dtype(lent.dtype, what)
    array = GpuArray(address=lent.address, shape=lent.shape, read_only=lent.read_only, owner=capsule)
    return array, lent.strides


def _by_interface(
    value: Any, what: str, device: CudaDevice, consumer: Stream, assumed: int | None
) -> tuple[GpuArray, tuple[int, ...] | None]:
    interface = value.__cuda_array_interface__
    known = isinstance(interface, Mapping) and interface.get("version", 0) >= 2
    if not known or interface.get("mask") is not None:
        raise InputError(
            f"{what} has a __cuda_array_interface__ of another kind; expected version 2 or 3 without a mask"
        )
    _check_dtype(str(np.dtype(interface["typestr"])), what)
    address, read_only = interface["data"]
    shape, strides = tuple(interface["shape"]), interface.get("strides")
    _check_place(int(address), what, device)  # before a stream of another GPU is waited for
    producer = interface.get("stream") or assumed
    if producer is not None and producer != consumer.number:
        _wait_for(int(producer), what, device, consumer)
    array = GpuArray(address=int(address), shape=shape, read_only=bool(read_only), owner=value)
    return array, None if strides is None else tuple(strides)


def _wait_for(producer: int, what: str, device: CudaDevice, consumer: Stream) -> None:
    stream = foreign_stream(producer, f"the stream that {what} names", device)
    with closing(Resources(device)) as made:
        event = made.event()
        event.record(stream)
        consumer.wait(event)


def foreign_stream(number: int, what: str, device: CudaDevice) -> Stream:
    """Return a stream of another library by its handle.

    Raises:
        InputError: It belongs to another context.
    """
    try:
        context = device.call("cuStreamGetCtx", number)
    except BackendError as error:
        raise InputError(f"{what} cannot be used: {error}") from error
    if not device.owns(context):
        raise InputError(f"{what} belongs to another CUDA context; {SHARE_CONTEXT}")
    return Stream(device, number)


def _check_dtype(found: str, what: str) -> None:
    if found != "uint8":
        raise InputError(f"{what} has dtype {found}; expected uint8 from 0 to 255, as NumPy pictures have")


def _check_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None, what: str) -> None:
    """Refuse gaps and other orders; the strides of bytes are the same in elements and in bytes."""
    if not shape or 0 in shape:
        raise InputError(f"{what} has shape {list(shape)}; expected at least one picture")
    expected = tuple(math.prod(shape[at + 1 :]) for at in range(len(shape)))
    if strides is None:
        return
    if any(
        size > 1 and found != wanted for size, found, wanted in zip(shape, strides, expected, strict=True)
    ):
        raise InputError(
            f"{what} has the strides {list(strides)}; expected {list(expected)}: make it contiguous, with "
            "tensor.contiguous() in PyTorch, cupy.ascontiguousarray(array) in CuPy"
        )


def _check_index(index: int, what: str, device: CudaDevice) -> None:
    if index != device.index:
        raise InputError(
            f"{what} is on cuda:{index} and this translator on {device.name}; move one of them: "
            f"tensor.to({device.name!r}), or Translator(..., device='cuda:{index}')"
        )


def _check_place(address: int, what: str, device: CudaDevice) -> None:
    """Ask the driver where an address is: a wrong one would end all work on the GPU."""
    attributes = device.driver.CUpointer_attribute
    try:
        index = int(
            device.call("cuPointerGetAttribute", attributes.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address)
        )
    except BackendError as error:
        raise InputError(f"{what} is at {address:#x}, which is no memory of a GPU ({error})") from error
    _check_index(index, what, device)
    try:
        context = device.call("cuPointerGetAttribute", attributes.CU_POINTER_ATTRIBUTE_CONTEXT, address)
    except BackendError:  # memory of pools and of virtual addresses belongs to no context
        return
    if context is not None and int(context) and not device.owns(context):
        raise InputError(f"{what} is memory of another CUDA context; {SHARE_CONTEXT}")
