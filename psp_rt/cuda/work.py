"""What CUDA makes and runs: streams, events, memory and recorded graphs.

What is made is kept by a `Resources`, which releases all of it in reverse order, also where one release
fails. It has not run on a GPU yet: the tests drive it with a stand-in for ``cuda.bindings.driver``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BackendError
from .device import CudaDevice

Bytes = npt.NDArray[np.uint8]


class Stream:
    """An order of work on the GPU, beside the default stream of other code."""

    def __init__(self, device: CudaDevice, handle: Any) -> None:
        self._device = device
        self.handle = handle

    @property
    def device(self) -> CudaDevice:
        """Return the GPU that it is on."""
        return self._device

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

    def copy(self, to: int, address: int, size: int) -> None:
        """Enqueue a copy from the GPU's memory to its memory."""
        self._device.call("cuMemcpyDtoDAsync", to, address, size, self.handle)

    def clear(self, address: int, size: int) -> None:
        """Enqueue the filling of the GPU's memory with zeros."""
        self._device.call("cuMemsetD8Async", address, 0, size, self.handle)

    def new_memory(self, size: int) -> int:
        """Return the address of memory of the device's pool, which is there for the work from now on."""
        return int(self._device.call("cuMemAllocAsync", size, self.handle))

    def free_memory(self, address: int) -> None:
        """Enqueue the freeing of memory of the device's pool."""
        self._device.call("cuMemFreeAsync", address, self.handle)

    def wait(self, event: Event) -> None:
        """Let what is enqueued from now on wait for the event as it is recorded now; nothing waits here."""
        self._device.call("cuStreamWaitEvent", self.handle, event.handle, 0)

    def being_captured(self) -> bool:
        """Return whether the stream's work is recorded instead of done."""
        return int(self._device.call("cuStreamIsCapturing", self.handle)) != 0

    def synchronize(self) -> None:
        """Wait for all work; errors of the work come out here."""
        self._device.call("cuStreamSynchronize", self.handle)


class Event:
    """A point in a stream to wait for."""

    def __init__(self, device: CudaDevice, handle: Any) -> None:
        self._device = device
        self.handle = handle

    def record(self, stream: Stream) -> None:
        """Set the point after the work enqueued so far."""
        self._device.call("cuEventRecord", self.handle, stream.handle)

    def passed(self) -> bool:
        """Return whether the work before the point has ended; its errors come out here."""
        return self._device.finished("cuEventQuery", self.handle)

    def synchronize(self) -> None:
        """Wait for the point; errors of the work before it come out here."""
        self._device.call("cuEventSynchronize", self.handle)


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
        with self._device.in_any_capture():
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
