"""A stand-in for PyTorch or another library on the stand-in driver: its work waits in a stream of its own."""

from __future__ import annotations

import ctypes
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver
from cuda.core import Buffer
from cuda.core.utils import StridedMemoryView

from tests.stand_ins.driver import LEGACY_STREAM, DriverStub


class Library:
    """What makes arrays on the GPU, and reads them."""

    def __init__(self, cuda: DriverStub) -> None:
        self.cuda = cuda
        self._context = self._checked(driver.cuDevicePrimaryCtxRetain(0))
        self.stream = int(self._call("cuStreamCreate", 1))
        self.current = self.stream  # what PyTorch calls the current stream
        self._memory: list[int] = []
        self.allocated_in: list[int] = []  # the current streams of `new_empty`

    def array(self, pixels: np.ndarray, kind: type | None = None, **settings: Any) -> Any:
        """Return an array that holds the pixels once the stream's work so far is done."""
        content = np.ascontiguousarray(pixels)
        made = self.empty(*content.shape, kind=kind, **settings)
        address: int = made.address
        self.launch(lambda: self.write(address, content))
        return made

    def empty(self, *shape: int, kind: type | None = None, **settings: Any) -> Any:
        """Return an array of undefined content."""
        address = int(self._call("cuMemAlloc", int(np.prod(shape))))
        self._memory.append(address)
        return (kind or DlpackArray)(self, address, shape, **settings)

    def write(self, address: int, content: np.ndarray) -> None:
        """Write to memory of the GPU, which must still be there; for use in the GPU's work."""
        assert self.cuda.holds(address, content.nbytes)
        ctypes.memmove(address, content.ctypes.data, content.nbytes)

    def launch(self, function: Any, stream: int | None = None) -> None:
        """Enqueue work of the library's."""
        self._call_in_context(lambda: self.cuda.launch(self.current if stream is None else stream, function))

    def read(self, array: Any) -> np.ndarray:
        """Return what an array of the library holds for work in its stream."""
        self.synchronize()
        return self.peek(array)

    def peek(self, array: Any) -> np.ndarray:
        """Return what an array holds at this moment, without waiting."""
        size = int(np.prod(array.shape))
        assert self.cuda.holds(array.address, size)
        return np.frombuffer(ctypes.string_at(array.address, size), np.uint8).reshape(array.shape)

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._call("cuStreamSynchronize", self.stream)

    def free(self, array: ForeignArray) -> None:
        """Release an array's memory, whatever still works on it."""
        self._memory.remove(array.address)
        self._call("cuMemFree", array.address)

    def close(self) -> None:
        """Release everything."""
        if not self.cuda.dead:
            self.synchronize()
            self._call("cuStreamSynchronize", LEGACY_STREAM)
        for address in self._memory:
            self._call("cuMemFree", address)
        self._call("cuStreamDestroy", self.stream)
        self._checked(driver.cuDevicePrimaryCtxRelease(0))

    def order(self, consumer: int) -> None:
        """Let a consumer's stream wait for this library's."""
        if consumer != self.current:
            event = self._call("cuEventCreate", 2)
            self._call("cuEventRecord", event, self.current)
            self._call("cuStreamWaitEvent", consumer, event, 0)
            self._call("cuEventDestroy", event)

    def as_torch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Stand in for the module of PyTorch, whose arrays have `new_empty`."""

        @contextmanager
        def stream(outside: SimpleNamespace) -> Any:
            before, self.current = self.current, outside.handle or LEGACY_STREAM
            yield
            self.current = before

        def external_stream(handle: int, *, device: Any) -> SimpleNamespace:
            return SimpleNamespace(handle=handle)

        cuda = SimpleNamespace(stream=stream, ExternalStream=external_stream)
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))

    def _call(self, name: str, *arguments: Any) -> Any:
        return self._call_in_context(lambda: self._checked(getattr(driver, name)(*arguments), name))

    def _call_in_context(self, function: Any) -> Any:
        driver.cuCtxPushCurrent(self._context)
        try:
            return function()
        finally:
            driver.cuCtxPopCurrent()

    def _checked(self, answer: tuple[Any, ...], name: str = "") -> Any:
        status, *values = answer
        assert int(status) == 0, f"{name} gave {status}"
        return values[0] if values else None


class ForeignArray:
    """Memory of the library."""

    def __init__(self, library: Library, address: int, shape: tuple[int, ...], **settings: Any) -> None:
        self.library, self.address, self.shape, self.settings = library, address, tuple(shape), settings


class DlpackArray(ForeignArray):
    """What has DLPack; its ``device`` says nothing."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.settings.get("index", 0)

    def __dlpack__(self, *, stream: int, max_version: tuple[int, int] | None = None, **rest: Any) -> Any:
        assert stream > 0  # 0 is ambiguous, None means the default stream
        self.library.order(stream)
        dtype = np.dtype(self.settings.get("dtype", np.uint8))
        buffer = Buffer.from_handle(self.address, int(np.prod(self.shape)) * dtype.itemsize, owner=self)
        view = StridedMemoryView.from_buffer(
            buffer,
            self.shape,
            self.settings.get("strides"),
            itemsize=dtype.itemsize,
            dtype=dtype,
            is_readonly=self.settings.get("read_only", False),
        )
        return view.__dlpack__(stream=-1, max_version=max_version)


class OldDlpackArray(DlpackArray):
    """What has DLPack from before its version 1.0."""

    def __dlpack__(self, *, stream: int) -> Any:  # type: ignore[override]
        return super().__dlpack__(stream=stream)


class TorchArray(DlpackArray):
    """What makes arrays of its own kind, as PyTorch's tensors do."""

    device = "cuda:0"

    def new_empty(self, shape: tuple[int, ...]) -> TorchArray:
        self.library.allocated_in.append(self.library.current)
        made: TorchArray = self.library.empty(*shape, kind=TorchArray)
        return made


class InterfaceArray(ForeignArray):
    """What has Numba's protocol, version 3, such as Numba and pycuda."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": "|u1",
            "data": (self.address, self.settings.get("read_only", False)),
            "strides": self.settings.get("strides"),
            "stream": self.settings.get("stream", self.library.stream),
            "version": self.settings.get("version", 3),
        }
