"""One GPU through NVIDIA's driver API: its context, and the resources and captured graphs that live in it.

Everything runs in the GPU's primary context, which PyTorch, CuPy and pycuda.autoprimaryctx share, and the
context that was current before is restored. Every status is checked.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import BackendError, DeviceError

Bytes = npt.NDArray[np.uint8]
INSTALL_BINDINGS = "pip install 'cuda-bindings>=12.9.1,<14' cuda-core"
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY, cuda.h


class OutOfMemory(BackendError):
    """Too little GPU memory or pinned memory is left; nothing was started."""


def load_driver() -> Any:
    """Import NVIDIA's bindings to its driver; cuda-core is imported with the first array on a GPU.

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
        """Release the context; its last user destroys it. Closing twice is allowed."""
        if self._context is not None:
            self._context = None
            self.call("cuDevicePrimaryCtxRelease", self._device)

    def owns(self, context: Any) -> bool:
        """Return whether a context is this one."""
        return int(context) == int(self._context)

    @contextmanager
    def current(self, mode: Literal["THREAD_LOCAL", "RELAXED"] = "THREAD_LOCAL") -> Iterator[None]:
        """Make the context current in this thread.

        Args:
            mode: How this thread's calls relate to graph captures. In CUDA's default mode, a capture by
                PyTorch in another thread makes our allocations fail; THREAD_LOCAL avoids that. RELAXED also
                permits them during a capture by this thread: Python may release an object in the middle of
                one.
        """
        self.call("cuCtxPushCurrent", self._context)
        try:
            kinds = self.driver.CUstreamCaptureMode
            before = None
            with suppress(BackendError):  # the work itself can go on without it
                before = self.call(
                    "cuThreadExchangeStreamCaptureMode", getattr(kinds, f"CU_STREAM_CAPTURE_MODE_{mode}")
                )
            try:
                yield
            finally:
                if before is not None:
                    with suppress(BackendError):
                        self.call("cuThreadExchangeStreamCaptureMode", before)
        except BaseException:
            with suppress(BackendError):  # a GPU that has failed returns the same error from every call
                self.call("cuCtxPopCurrent")
            raise
        self.call("cuCtxPopCurrent")

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a driver function and return what it returns after the status.

        Raises:
            OutOfMemory: Too little memory is left.
            BackendError: The status is not success.
        """
        try:
            status, *values = getattr(self.driver, name)(*arguments)
        except (RuntimeError, AttributeError) as error:  # no libcuda, or a driver too old for this function
            raise BackendError(
                f"{name} cannot be called on {self.name} ({error}); see nvidia-smi and psp-rt doctor"
            ) from error
        if int(status) == _OUT_OF_MEMORY:
            raise OutOfMemory(
                f"{self.name} has too little memory left ({name}); use a smaller max_batch, or close other "
                "translators and the programs that nvidia-smi shows"
            )
        if int(status) != 0:
            raise BackendError(
                f"{name} failed on {self.name}: {self._description(status)}; see nvidia-smi and psp-rt doctor"
            )
        return values[0] if values else None

    def has_passed(self, event: Any) -> bool:
        """Return whether the work before an event has finished.

        Raises:
            BackendError: The work failed.
        """
        status = self.driver.cuEventQuery(event)[0]
        if status == self.driver.CUresult.CUDA_ERROR_NOT_READY:
            return False
        if int(status) != 0:
            raise BackendError(f"cuEventQuery failed on {self.name}: {self._description(status)}")
        return True

    def _description(self, status: Any) -> str:
        texts = [self.driver.cuGetErrorName(status)[1], self.driver.cuGetErrorString(status)[1]]
        return ": ".join(text.decode() for text in texts if text) or f"error {int(status)}"


class Resources:
    """GPU resources that are released together, the latest first; the device's context must be current.

    As a context manager it releases them only after an error, which is then the one that is raised.
    """

    def __init__(self, device: CudaDevice) -> None:
        self._device, self._releases = device, ExitStack()

    def __enter__(self) -> Resources:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            with suppress(BackendError):
                self.close()

    def close(self) -> None:
        """Release everything, even if one release fails. Closing twice is allowed."""
        self._releases.close()

    def device_memory(self, size: int) -> int:
        """Return the address of new GPU memory, aligned to at least 256 bytes."""
        return int(self._new("cuMemFree", "cuMemAlloc", size))

    def pinned_memory(self, size: int) -> Bytes:
        """Return zeros [size] in host memory that the GPU can copy asynchronously."""
        address = int(self._new("cuMemFreeHost", "cuMemHostAlloc", size, 0))
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        memory[:] = 0
        return memory

    def stream(self) -> Any:
        """Return a new stream that does not synchronize with the default stream."""
        flag = int(self._device.driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        return self._new("cuStreamDestroy", "cuStreamCreate", flag)

    def event(self) -> Any:
        """Return a new event without timing."""
        flag = int(self._device.driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)
        return self._new("cuEventDestroy", "cuEventCreate", flag)

    def captured(self, stream: Any, enqueue: Callable[[], None]) -> Any:
        """Return an executable graph of the work that a function enqueues in a stream; nothing runs yet.

        Raises:
            BackendError: The work cannot be captured.
        """
        call = self._device.call
        # "Global" mode would make CUDA calls of other threads fail.
        mode = self._device.driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        call("cuStreamBeginCapture", stream, mode)
        try:
            enqueue()
        except BaseException:
            with suppress(BackendError):  # end the capture, or the stream stays unusable
                call("cuGraphDestroy", call("cuStreamEndCapture", stream))
            raise
        graph = call("cuStreamEndCapture", stream)
        if graph is None or not int(graph):
            raise BackendError(f"no CUDA graph could be captured on {self._device.name}; see psp-rt doctor")
        try:
            return self._new("cuGraphExecDestroy", "cuGraphInstantiate", graph, 0)
        finally:
            call("cuGraphDestroy", graph)

    def _new(self, release: str, create: str, *arguments: Any) -> Any:
        handle = self._device.call(create, *arguments)
        self._releases.callback(self._device.call, release, handle)
        return handle
