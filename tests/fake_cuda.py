"""A stand-in for ``cuda.bindings.driver``: memory is real, and work waits until it is waited for.

It says what NVIDIA's driver would: nothing may be done without a current context, used after its release, or
allocated during a capture. ``live`` holds what was made and not released.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

NO_MEMORY, BAD_VALUE, NO_CONTEXT, BAD_HANDLE, ILLEGAL_ADDRESS, CAPTURING = 2, 1, 201, 400, 700, 900
NAMES = {NO_MEMORY: b"CUDA_ERROR_OUT_OF_MEMORY", ILLEGAL_ADDRESS: b"CUDA_ERROR_ILLEGAL_ADDRESS"}
RELEASES = ("Destroy", "Free", "Release", "Pop")
Work = Callable[[], int]  # gives a status


class FakeCuda:
    """One process's driver."""

    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUevent_flags = SimpleNamespace(CU_EVENT_DISABLE_TIMING=2)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)

    def __init__(self, gpus: int = 1) -> None:
        self.gpus, self.retained = gpus, 0
        self.live: dict[int, str] = {}
        self.released: list[str] = []
        self.calls: Counter[str] = Counter()
        self.log: list[str] = []
        self.failures: dict[int, int] = {}  # by the number of a call: its status
        self.free_bytes = 1 << 40
        self.dead = 0  # a status that every call gives from now on
        self._content: dict[int, Any] = {}
        self._capturing: dict[int, int] = {}  # streams, and the threads that record them
        self._handles = itertools.count(0x1000)
        self._current, self._lock = threading.local(), threading.RLock()

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)
        function = getattr(type(self), f"_{name}")

        def call(*arguments: Any) -> tuple:
            with self._lock:
                self.calls[name] += 1
                self.log.append(name)
                status = self.failures.pop(len(self.log) - 1, 0) or self.dead
                if not status and not self._stack and name not in CONTEXT_FREE:
                    status = NO_CONTEXT
                if status and not name.startswith("cuGetError"):
                    return status, None
                result = function(self, *arguments)
            return result if isinstance(result, tuple) else (0, result)

        return call

    @property
    def _stack(self) -> list[int]:
        if not hasattr(self._current, "stack"):
            self._current.stack = []
        return self._current.stack

    # Devices and contexts.

    def _cuInit(self, flags: int) -> None: ...

    def _cuDeviceGet(self, index: int) -> Any:
        return index if index < self.gpus else (101, None)

    def _cuDevicePrimaryCtxRetain(self, device: int) -> int:
        self.retained += 1
        return 0xC0

    def _cuDevicePrimaryCtxRelease(self, device: int) -> None:
        self.retained -= 1

    def _cuCtxPushCurrent(self, context: int) -> Any:
        if not self.retained:
            return (NO_CONTEXT,)
        self._stack.append(context)
        return None

    def _cuCtxPopCurrent(self) -> int:
        return self._stack.pop()

    def _cuGetErrorName(self, status: int) -> Any:
        return 0, NAMES.get(status)

    def _cuGetErrorString(self, status: int) -> Any:
        return 0, b"as the driver says it" if status in NAMES else None

    # Memory.

    def _cuMemAlloc(self, size: int) -> Any:
        return self._memory("device memory", size)

    def _cuMemHostAlloc(self, size: int, flags: int) -> Any:
        return self._memory("pinned memory", size)

    def _cuMemFree(self, address: int) -> Any:
        return self._release(address, "device memory")

    def _cuMemFreeHost(self, address: int) -> Any:
        return self._release(address, "pinned memory")

    def _memory(self, kind: str, size: int) -> Any:
        if threading.get_ident() in self._capturing.values():  # "thread-local" mode: other threads may
            return CAPTURING, None
        if size < 1:
            return BAD_VALUE, None
        if kind == "device memory" and size > self.free_bytes:
            return NO_MEMORY, None
        block = (ctypes.c_uint8 * size)(*b"\xcd" * min(size, 16))
        return self._made(kind, block, ctypes.addressof(block))

    def holds(self, address: int, size: int, kind: str = "device memory") -> bool:
        """Say whether memory of a kind is live there."""
        return any(
            self.live.get(at) == kind and at <= address and address + size <= at + len(block)
            for at, block in self._content.items()
            if self.live.get(at, "").endswith("memory")
        )

    def _cuMemcpyHtoDAsync(self, address: int, host: int, size: int, stream: int) -> Any:
        return self.enqueue(stream, lambda: self._copy(address, host, size, address, host))

    def _cuMemcpyDtoHAsync(self, host: int, address: int, size: int, stream: int) -> Any:
        return self.enqueue(stream, lambda: self._copy(host, address, size, address, host))

    def _copy(self, to: int, source: int, size: int, device: int, host: int) -> int:
        if not (self.holds(device, size) and self.holds(host, size, "pinned memory")):
            return ILLEGAL_ADDRESS
        ctypes.memmove(to, source, size)
        return 0

    # Streams, events, graphs.

    def enqueue(self, stream: int, work: Work) -> Any:
        """Put work into a stream; or into its recording."""
        content = self._content.get(int(stream))
        if content is None:
            return (BAD_HANDLE,)
        (content.queue if content.recorded is None else content.recorded).append(work)
        return (0,)

    def capturing(self, stream: int) -> bool:
        """Say whether a stream is recorded."""
        return self._content[stream].recorded is not None

    def _cuStreamCreate(self, flags: int) -> int:
        assert flags == 1
        return self._made("stream", SimpleNamespace(queue=[], recorded=None))

    def _cuStreamDestroy(self, stream: int) -> Any:
        return self._release(stream, "stream")

    def _cuStreamSynchronize(self, stream: int) -> Any:
        content = self._content[stream]
        if content.recorded is not None:
            return (CAPTURING,)
        while content.queue:
            status = content.queue.pop(0)()
            if status:
                self.dead = status
                return (status,)
        return (0,)

    def _cuEventCreate(self, flags: int) -> int:
        return self._made("event", SimpleNamespace(stream=None))

    def _cuEventRecord(self, event: int, stream: int) -> None:
        self._content[event].stream = stream

    def _cuEventSynchronize(self, event: int) -> Any:
        stream = self._content[event].stream
        return (0,) if stream is None else self._cuStreamSynchronize(stream)

    def _cuEventDestroy(self, event: int) -> Any:
        return self._release(event, "event")

    def _cuStreamBeginCapture(self, stream: int, mode: int) -> Any:
        assert mode == self.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        if self._content[stream].queue:
            return (CAPTURING,)
        self._content[stream].recorded, self._capturing[stream] = [], threading.get_ident()
        return None

    def _cuStreamEndCapture(self, stream: int) -> int:
        content = self._content[stream]
        graph, content.recorded = content.recorded, None
        del self._capturing[stream]
        return self._made("graph", graph)

    def _cuGraphInstantiate(self, graph: int, flags: int) -> int:
        return self._made("executable", list(self._content[graph]))

    def _cuGraphLaunch(self, executable: int, stream: int) -> Any:
        for work in self._content[executable]:
            self.enqueue(stream, work)

    def _cuGraphDestroy(self, graph: int) -> Any:
        return self._release(graph, "graph")

    def _cuGraphExecDestroy(self, executable: int) -> Any:
        return self._release(executable, "executable")

    def _made(self, kind: str, content: Any, handle: int | None = None) -> int:
        handle = next(self._handles) if handle is None else handle
        self.live[handle], self._content[handle] = kind, content
        return handle

    def _release(self, handle: int, kind: str) -> Any:
        if self.live.get(handle) != kind:
            return (BAD_HANDLE,)
        self.released.append(kind)
        self._capturing.pop(handle, None)
        del self.live[handle], self._content[handle]
        return (0,)


CONTEXT_FREE = {
    "cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease", "cuCtxPushCurrent",
    "cuGetErrorName", "cuGetErrorString",
}  # fmt: skip
