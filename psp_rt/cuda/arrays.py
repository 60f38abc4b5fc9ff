"""Pictures in the memory of a GPU, which other libraries take without a copy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np

from ..errors import InputError
from ..images import Pixels
from . import dlpack
from .device import CudaDevice
from .gpu_memory import GpuMemory
from .stream_forms import LEGACY_DEFAULT, PER_THREAD_DEFAULT, stream_number
from .work import Event, Resources, Stream


class DeviceArray:
    """A uint8 array in the memory of a GPU, such as :meth:`Translator.run` gives for an array there.

    PyTorch (``torch.from_dlpack``), CuPy (``cupy.from_dlpack``), Numba and others take it without a copy. It
    and they share the memory, which is freed when the last of them is gone; that of a result with ``stream``
    in the order of that stream's work. It has not run on a GPU yet.

    Example:
        >>> picture = translator.run(frame_on_gpu)
        >>> torch.from_dlpack(picture).shape
        torch.Size([1024, 1024, 3])
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self, address: int, shape: tuple[int, ...], *, index: int, owner: Any, stream: int | None
    ) -> None:
        """Use `from_pointer`, or what `Translator.run` gives."""
        self.pointer, self.shape, self._index, self._owner = address, shape, index, owner
        self._stream = stream  # in which the content is made; None where it is there already

    @classmethod
    def from_pointer(
        cls,
        address: int,
        shape: tuple[int, ...],
        *,
        device: int | str = 0,
        owner: Any = None,
        stream: Any = LEGACY_DEFAULT,
    ) -> DeviceArray:
        """Return an array over memory of the caller's, for example of a C++ host.

        Args:
            address: On the GPU, of bytes without gaps.
            shape: Of uint8, for example (256, 256, 3).
            device: The GPU: a number, or "cuda:N".
            owner: What keeps the memory; kept as long as the array. None where the caller sees to it.
            stream: In which the content is made or used: a handle, or a stream as for `Translator.run`.

        Raises:
            InputError: A value means nothing.
        """
        if isinstance(address, bool) or not isinstance(address, int) or address < 1:
            raise InputError(f"the address is {address!r}; expected an int, such as tensor.data_ptr() gives")
        sizes = tuple(shape)
        if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
            raise InputError(f"the shape is {shape!r}; expected sizes from 1 up, such as (256, 256, 3)")
        return cls(address, sizes, index=_index(device), owner=owner, stream=stream_number(stream))

    @property
    def device(self) -> str:
        """Return "cuda:N"."""
        return f"cuda:{self._index}"

    @property
    def ndim(self) -> int:
        """Return the number of dimensions."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Return its size in bytes."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<DeviceArray uint8 {list(self.shape)} on {self.device}>"

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Return version 3 of Numba's protocol; its ``stream`` is the one to wait for."""
        self._lend(None)
        return {
            "shape": self.shape,
            "typestr": "|u1",
            "data": (self.pointer, False),
            "strides": None,
            "stream": None if self._finished() else self._stream,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self._index

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Return a capsule; ``stream``, the consumer's, goes on once the content is there."""
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError("a DeviceArray is lent where it is; for a copy on the host use to_host()")
        if stream == -1:
            self._lend(None)
        else:
            self._let_wait(LEGACY_DEFAULT if stream is None else stream_number(stream))
        versioned = max_version is not None and max_version[0] >= 1
        return dlpack.lend(
            self.pointer, self.shape, device_index=self._index, owner=self._owner, versioned=versioned
        )

    def to_host(self) -> Pixels:
        """Return a copy as a NumPy array, once the content is there."""
        host = np.empty(self.shape, np.uint8)
        with _visiting(self._index) as (device, made):
            self._ready(device, made).synchronize()
            device.call("cuMemcpyDtoH", host.ctypes.data, self.pointer, host.nbytes)
        return host

    def _finished(self) -> bool:
        """Return whether the content is known to be there: its stream may be gone by then."""
        if self._stream is None or not isinstance(self._owner, GpuMemory):
            return self._stream is None
        with _visiting(self._index):
            return self._owner.ready.passed()

    def _lend(self, consumer: int | None) -> None:
        if isinstance(self._owner, GpuMemory):
            self._owner.lend(consumer)

    def _let_wait(self, consumer: int) -> None:
        self._lend(consumer)
        if self._stream is None or (self._stream == consumer != PER_THREAD_DEFAULT):
            return  # the latter is another stream in each thread
        with _visiting(self._index) as (device, made):
            Stream(device, consumer).wait(self._ready(device, made))

    def _ready(self, device: CudaDevice, made: Resources) -> Event:
        """Return the point after which the content is there."""
        if isinstance(self._owner, GpuMemory):
            return self._owner.ready
        event = made.event()
        if self._stream is not None:
            event.record(Stream(device, self._stream))
        return event


@contextmanager
def _visiting(index: int) -> Iterator[tuple[CudaDevice, Resources]]:
    """Use a GPU's context for some calls, with what they make."""
    device = CudaDevice(index)
    with closing(device), device.current(), closing(Resources(device)) as made:
        yield device, made


def _index(device: Any) -> int:
    name = device if isinstance(device, str) else f"cuda:{device}"
    kind, _, number = name.partition(":")
    if isinstance(device, bool) or kind != "cuda" or not (number or "0").isdecimal():
        raise InputError(f"device is {device!r}; expected a GPU's number, or 'cuda:N'")
    return int(number or 0)
