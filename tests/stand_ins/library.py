"""A stand-in for PyTorch or CuPy on the memory of a FakeCuda: its work waits in a stream of its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from psp_rt.cuda import dlpack
from tests.stand_ins.cuda import LEGACY_STREAM, PRIMARY, FakeCuda


class Library:
    """What makes arrays on the GPU, and reads them."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        cuda.retained += 1
        self.stream = self._call("cuStreamCreate", 1)
        self._memory: list[int] = []

    def array(self, pixels: np.ndarray, kind: type | None = None, **settings: Any) -> Any:
        """Return an array that holds the pixels once the stream's work so far is done."""
        content = np.ascontiguousarray(pixels)
        address = self._call("cuMemAlloc", content.nbytes)
        self._memory.append(address)
        self.cuda.enqueue(self.stream, lambda: self._write(address, content))
        return (kind or DlpackArray)(self, address, content.shape, **settings)

    def empty(self, *shape: int, kind: type | None = None, **settings: Any) -> Any:
        """Return an array of zeros."""
        return self.array(np.zeros(shape, np.uint8), kind, **settings)

    def read(self, array: Any) -> np.ndarray:
        """Return what an array holds for work in this library's stream."""
        if isinstance(array, ForeignArray):
            address, shape = array.address, array.shape
        else:
            self._capsule = array.__dlpack__(stream=self.stream)
            lent = dlpack.read(self._capsule)
            address, shape = lent.address, lent.shape
        found = np.empty(shape, np.uint8)
        self.cuda.enqueue(
            self.stream,
            lambda: self.cuda.copy(found.ctypes.data, address, found.nbytes, device=[address]),
        )
        self.synchronize()
        return found

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._call("cuStreamSynchronize", self.stream)

    def free(self, array: ForeignArray) -> None:
        """Release an array's memory, whatever still works on it."""
        self._memory.remove(array.address)
        self._call("cuMemFree", array.address)

    def close(self) -> None:
        """Release everything."""
        self._capsule = None
        if not self.cuda.dead:
            self.synchronize()
            self._call("cuStreamSynchronize", LEGACY_STREAM)
        for address in self._memory:
            self._call("cuMemFree", address)
        self._call("cuStreamDestroy", self.stream)
        self.cuda.retained -= 1

    def order(self, consumer: int) -> None:
        """Let a consumer's stream wait for this library's."""
        event = self._call("cuEventCreate", 2)
        self._call("cuEventRecord", event, self.stream)
        self._call("cuStreamWaitEvent", consumer, event, 0)
        self._call("cuEventDestroy", event)

    def _write(self, address: int, content: np.ndarray) -> int:
        return self.cuda.copy(address, content.ctypes.data, content.nbytes, device=[address])

    def _call(self, name: str, *arguments: Any) -> Any:
        self.cuda._stack.append(PRIMARY)
        try:
            status, *values = getattr(self.cuda, name)(*arguments)
        finally:
            self.cuda._stack.pop()
        assert status == 0, f"{name} gave {status}"
        return values[0] if values else None


class ForeignArray:
    """Memory of the library."""

    def __init__(self, library: Library, address: int, shape: tuple[int, ...], **settings: Any) -> None:
        self.library, self.address, self.shape, self.settings = library, address, shape, settings


class DlpackArray(ForeignArray):
    """What has DLPack, such as PyTorch's tensors."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.settings.get("index", 0)

    def __dlpack__(self, *, stream: int, max_version: tuple[int, int] | None = None) -> Any:
        assert stream > 0  # 0 is ambiguous, None means the default stream
        self.library.order(stream)
        versioned = max_version is not None
        capsule = dlpack.lend(
            self.address,
            self.shape,
            device_index=self.settings.get("index", 0),
            owner=self,
            versioned=versioned,
        )
        return self.settings.get("change", lambda capsule: capsule)(capsule)


class OldDlpackArray(DlpackArray):
    """What has DLPack from before its version 1.0."""

    def __dlpack__(self, *, stream: int) -> Any:  # type: ignore[override]
        return super().__dlpack__(stream=stream)


class InterfaceArray(ForeignArray):
    """What has Numba's protocol, version 3, such as Numba and pycuda."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": "|u1",
            "data": (self.address, False),
            "stream": self.library.stream,
            "version": 3,
        } | self.settings
