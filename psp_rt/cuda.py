"""The part of CUDA that running a TensorRT plan takes, over the driver calls of NVIDIA's cuda-bindings.

It works in the primary context, which the process's other CUDA code (PyTorch, CuPy, pycuda.autoprimaryctx)
shares, and leaves whatever context was current as it was. Every status is checked. What is made is kept by a
`Resources`, which releases all of it in reverse order, also where one release fails.

Written against cuda-bindings 12.9 and 13.5. It has not run on a GPU yet: the tests drive it with a
stand-in for the module ``cuda.bindings.driver``.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import BackendError, DeviceError

INSTALL_BINDINGS = "pip install 'psp_rt[tensorrt]'"
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY, cuda.h

Bytes = npt.NDArray[np.uint8]


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
        self.name = f"cuda:{index}"
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
        """Make the context this thread's current one, for a while."""
        self.call("cuCtxPushCurrent", self._context)
        try:
            yield
        except BaseException:
            with suppress(BackendError):  # a GPU that has failed gives the same error to every call
                self.call("cuCtxPopCurrent")
            raise
        self.call("cuCtxPopCurrent")

    def call(self, name: str, *arguments: Any) -> Any:
        """Call the driver and return what it gives beside its status.

        Raises:
            OutOfMemory: There is too little.
            BackendError: The status is any other than success.
        """
        try:
            status, *values = getattr(self.driver, name)(*arguments)
        except (RuntimeError, AttributeError) as error:  # no libcuda; an older driver has not this call
            raise BackendError(
                f"{name} cannot be called on {self.name} ({error}); see nvidia-smi and psp-rt doctor"
            ) from error
        if int(status) == _OUT_OF_MEMORY:
            raise OutOfMemory(
                f"{self.name} has too little memory left ({name}); use a smaller max_batch, or close other "
                "translators and programs that nvidia-smi shows"
            )
        if int(status) != 0:
            raise BackendError(
                f"{name} failed on {self.name}: {self._described(status)}; see nvidia-smi and psp-rt doctor"
            )
        return values[0] if values else None

    def _described(self, status: Any) -> str:
        try:
            texts = [self.driver.cuGetErrorName(status)[1], self.driver.cuGetErrorString(status)[1]]
            return ": ".join(text.decode() for text in texts)
        except (RuntimeError, AttributeError):  # None for a status that the driver does not know
            return f"error {int(status)}"


class Stream:
    """An order of work on the GPU, beside the default stream of other code."""

    def __init__(self, device: CudaDevice, handle: Any) -> None:
        self._device = device
        self.handle = handle

    @property
    def number(self) -> int:
        """Return the handle as TensorRT takes it."""
        return int(self.handle)

    def upload(self, address: int, host: Bytes) -> None:
        """Enqueue a copy from pinned memory [size] to the GPU."""
        self._device.call("cuMemcpyHtoDAsync", address, host.ctypes.data, host.nbytes, self.handle)

    def download(self, host: Bytes, address: int) -> None:
        """Enqueue a copy from the GPU to pinned memory [size]."""
        self._device.call("cuMemcpyDtoHAsync", host.ctypes.data, address, host.nbytes, self.handle)

    def synchronize(self) -> None:
        """Wait for all work; errors of the work come out here."""
        self._device.call("cuStreamSynchronize", self.handle)


class Event:
    """A point in a stream to wait for."""

    def __init__(self, device: CudaDevice, handle: Any) -> None:
        self._device = device
        self._handle = handle

    def record(self, stream: Stream) -> None:
        """Set the point after the work enqueued so far."""
        self._device.call("cuEventRecord", self._handle, stream.handle)

    def synchronize(self) -> None:
        """Wait for the point; errors of the work before it come out here."""
        self._device.call("cuEventSynchronize", self._handle)


class Graph:
    """Recorded work, which one call launches."""

    def __init__(self, device: CudaDevice, handle: Any) -> None:
        self._device = device
        self._handle = handle

    def launch(self, stream: Stream) -> None:
        """Enqueue all of it."""
        self._device.call("cuGraphLaunch", self._handle, stream.handle)


class Resources:
    """What was made on a device, to be released together; the device's context must be current."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._releases = ExitStack()

    def __enter__(self) -> Resources:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release everything if there was an error, which matters more than one on the way out."""
        if error is not None:
            with suppress(BackendError):
                self.close()

    def close(self) -> None:
        """Release everything, the latest first. Closing twice is allowed."""
        self._releases.close()  # goes on after an error, and raises it at the end

    def keep(self, release: Callable[..., Any], *arguments: Any) -> None:
        """Call this when everything is released."""
        self._releases.callback(release, *arguments)

    def device_memory(self, size: int) -> int:
        """Return the address of some bytes on the GPU, aligned to at least 256."""
        pointer = self._made("cuMemFree", "cuMemAlloc", size)
        return int(pointer)

    def pinned_memory(self, size: int) -> Bytes:
        """Return bytes [size] on the host that the GPU copies by itself; not to be used after release."""
        address = int(self._made("cuMemFreeHost", "cuMemHostAlloc", size, 0))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def stream(self) -> Stream:
        """Return a stream that waits for no other one."""
        flag = int(self._device.driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        return Stream(self._device, self._made("cuStreamDestroy", "cuStreamCreate", flag))

    def event(self) -> Event:
        """Return an event that keeps no time."""
        flag = int(self._device.driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)
        return Event(self._device, self._made("cuEventDestroy", "cuEventCreate", flag))

    def captured(self, stream: Stream, enqueue: Callable[[], None]) -> Graph:
        """Return a graph of what a function enqueues; nothing of it runs yet.

        Raises:
            BackendError: A call was made that cannot be recorded.
        """
        # "Global" mode would make CUDA calls of other threads fail.
        mode = self._device.driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._device.call("cuStreamBeginCapture", stream.handle, mode)
        with ExitStack() as recorded:
            try:
                enqueue()
            except BaseException:
                with suppress(BackendError):  # the stream must leave its capture, or it stays useless
                    self._end_capture(stream, recorded)
                raise
            graph = self._end_capture(stream, recorded)
            executable = self._made("cuGraphExecDestroy", "cuGraphInstantiate", graph, 0)
        return Graph(self._device, executable)

    def _end_capture(self, stream: Stream, recorded: ExitStack) -> Any:
        graph = self._device.call("cuStreamEndCapture", stream.handle)
        if graph is None or not int(graph):
            raise BackendError(f"nothing could be recorded on {self._device.name}; see psp-rt doctor")
        recorded.callback(self._device.call, "cuGraphDestroy", graph)
        return graph

    def _made(self, release: str, make: str, *arguments: Any) -> Any:
        handle = self._device.call(make, *arguments)
        self.keep(self._device.call, release, handle)
        return handle
