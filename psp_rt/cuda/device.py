"""One GPU, over the driver calls of NVIDIA's cuda-bindings; what is made on it is in `cuda_work`.

It works in the primary context, which the process's other CUDA code (PyTorch, CuPy, pycuda.autoprimaryctx)
shares, and leaves whatever context was current as it was. Every status is checked.

Written against cuda-bindings 12.9 and 13.5. It has not run on a GPU yet: the tests drive it with a
stand-in for the module ``cuda.bindings.driver``.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from ..errors import BackendError, DeviceError

INSTALL_BINDINGS = "pip install 'cuda-bindings>=12.6.1,<14'"
_OUT_OF_MEMORY, _NOT_READY = 2, 600  # CUDA_ERROR_OUT_OF_MEMORY and _NOT_READY, cuda.h


class OutOfMemory(BackendError):
    """The GPU, or the memory that can be pinned, has too little left; nothing else has happened."""


def load_driver() -> Any:
    """Import NVIDIA's bindings to its driver.

    Raises:
        DeviceError: They are not installed, or cannot be loaded.
    """
    try:
        return importlib.import_module("cuda.bindings.driver")
    except (ImportError, OSError, RuntimeError) as error:
        raise DeviceError(
            f"NVIDIA's cuda-bindings cannot be loaded ({error}); install them with: {INSTALL_BINDINGS}"
        ) from error


class CudaDevice:
    """The primary context of one GPU."""

    def __init__(self, index: int) -> None:
        """Retain the context.

        Raises:
            DeviceError: There is no such GPU, or it cannot be used.
        """
        self.index, self.name = index, f"cuda:{index}"
        self.driver = load_driver()
        self._context: Any = None
        try:
            self.call("cuInit", 0)
            self._device = self.call("cuDeviceGet", index)
            self._context = self.call("cuDevicePrimaryCtxRetain", self._device)
        except BackendError as error:
            raise DeviceError(f"{self.name} cannot be used: {error}") from error

    def close(self) -> None:
        """Give the context back; it ends with its last user. Closing twice is allowed."""
        if self._context is not None:
            self._context = None
            self.call("cuDevicePrimaryCtxRelease", self._device)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the context this thread's current one, for a while.

        Recordings of other threads do not disturb its calls meanwhile: PyTorch's are of a kind in which calls
        that take memory or ask for events fail in every thread, unless a thread says that it stands apart.
        """
        self.call("cuCtxPushCurrent", self._context)
        try:
            with self._capturing("THREAD_LOCAL"):
                yield
        except BaseException:
            with suppress(BackendError):  # a GPU that has failed gives the same error to every call
                self.call("cuCtxPopCurrent")
            raise
        self.call("cuCtxPopCurrent")

    def owns(self, context: Any) -> bool:
        """Return whether a context is the primary one."""
        return int(context) == int(self._context)

    def has_memory_pool(self) -> bool:
        """Return whether memory can be taken and freed in the order of a stream's work."""
        attribute = self.driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED
        return bool(self.call("cuDeviceGetAttribute", attribute, self._device))

    def in_any_capture(self) -> AbstractContextManager[None]:
        """Let calls work meanwhile also where this thread records a graph.

        Python may release an object at any moment, and so in the middle of a recording, which a call such
        as cuMemFree would spoil.
        """
        return self._capturing("RELAXED")

    @contextmanager
    def _capturing(self, mode: str) -> Iterator[None]:
        """Take another stance towards recordings, of cuThreadExchangeStreamCaptureMode, for a while."""
        exchange = "cuThreadExchangeStreamCaptureMode"
        before: Any = None
        with suppress(BackendError):  # what is done is done even so
            kinds = self.driver.CUstreamCaptureMode
            before = self.call(exchange, getattr(kinds, f"CU_STREAM_CAPTURE_MODE_{mode}"))
        try:
            yield
        finally:
            if before is not None:
                with suppress(BackendError):
                    self.call(exchange, before)

    def call(self, name: str, *arguments: Any) -> Any:
        """Call the driver and return what it gives beside its status.

        Raises:
            OutOfMemory: There is too little.
            BackendError: The status is any other than success.
        """
        status, *values = self._answer(name, *arguments)
        self._check(name, status)
        return values[0] if values else None

    def finished(self, name: str, *arguments: Any) -> bool:
        """Ask the driver whether something has ended.

        Raises:
            BackendError: The status is neither success nor "not ready".
        """
        status = self._answer(name, *arguments)[0]
        if int(status) == _NOT_READY:
            return False
        self._check(name, status)
        return True

    def _answer(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        try:
            answer: tuple[Any, ...] = getattr(self.driver, name)(*arguments)
        except (RuntimeError, AttributeError) as error:  # no libcuda; an older driver has not this call
            raise BackendError(
                f"{name} cannot be called on {self.name} ({error}); see nvidia-smi and psp-rt doctor"
            ) from error
        return answer

    def _check(self, name: str, status: Any) -> None:
        if int(status) == _OUT_OF_MEMORY:
            raise OutOfMemory(
                f"{self.name} has too little memory left ({name}); use a smaller max_batch, or close other "
                "translators and programs that nvidia-smi shows"
            )
        if int(status) != 0:
            raise BackendError(
                f"{name} failed on {self.name}: {self._described(status)}; see nvidia-smi and psp-rt doctor"
            )

    def _described(self, status: Any) -> str:
        try:
            texts = [self.driver.cuGetErrorName(status)[1], self.driver.cuGetErrorString(status)[1]]
            return ": ".join(text.decode() for text in texts)
        except (RuntimeError, AttributeError):  # None for a status that the driver does not know
            return f"error {int(status)}"
