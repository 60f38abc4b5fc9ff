"""A stand-in for ``cuda.bindings.driver``: memory is real, and work waits until it is waited for.

It says what NVIDIA's driver would: nothing may be done without a current context, used after its release, or
allocated during a capture. ``live`` holds what was made and not released.

It is unkind where the driver may be: a stream's work is done as late as possible, and no sooner because
another stream's was; memory that is released under work that waits is gone; and pinned memory that changes
between the launch of an upload and its doing is noted in ``faults``.
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
NOT_READY, IMPLICIT_CAPTURE = 600, 906
LEGACY_STREAM = 1
PRIMARY, OTHER_CONTEXT = 0xC0, 0xD0
NAMES = {NO_MEMORY: b"CUDA_ERROR_OUT_OF_MEMORY", ILLEGAL_ADDRESS: b"CUDA_ERROR_ILLEGAL_ADDRESS"}
RELEASES = ("Destroy", "Free", "Release", "Pop")
Work = Callable[[], int]  # gives a status


class FakeCuda:
    """One process's driver."""

    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUevent_flags = SimpleNamespace(CU_EVENT_DISABLE_TIMING=2)
    CUstreamCaptureMode = SimpleNamespace(
        CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1, CU_STREAM_CAPTURE_MODE_RELAXED=2
    )
    CUdevice_attribute = SimpleNamespace(CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED=115)
    CUpointer_attribute = SimpleNamespace(
        CU_POINTER_ATTRIBUTE_CONTEXT=1, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL=9
    )

    def __init__(self, gpus: int = 1) -> None:
        self.gpus, self.retained = gpus, 0
        self.live: dict[int, str] = {}
        self.released: list[str] = []
        self.calls: Counter[str] = Counter()
        self.log: list[str] = []
        self.trace: list[tuple[Any, ...]] = []  # the same, with arguments
        self.failures: dict[int, int] = {}  # by the number of a call: its status
        self.refusals: dict[str, int] = {}  # by the name of a call: the status of its next one
        self.free_bytes = 1 << 40
        self.pools = True
        self._pooled: set[int] = set()  # memory of the pool
        self._unborn: set[int] = set()  # of it, what its stream has not come to yet
        self._doomed: set[int] = set()  # of it, what its stream will free
        self.dead = 0  # a status that every call gives from now on
        self._content: dict[int, Any] = {}
        self._capturing: dict[int, int] = {}  # streams, and the threads that record them
        self._modes: dict[int, int] = {}  # of threads; 0, "global", is that of threads that never chose one
        self.recorded_elsewhere = False  # by another thread, and in the mode "global"
        self.faults: list[str] = []
        self.contexts: dict[int, int] = {}  # of streams in another context
        self.placed: dict[int, tuple[int, int]] = {}  # memory that is on another GPU, or in another context
        self._handles = itertools.count(0x1000)
        self._current, self._lock = threading.local(), threading.RLock()
        self._content[LEGACY_STREAM] = SimpleNamespace(queue=[], recorded=None)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)
        function = getattr(type(self), f"_{name}")

        def call(*arguments: Any) -> tuple:
            with self._lock:
                self.calls[name] += 1
                self.log.append(name)
                self.trace.append((name, *arguments))
                status = self.failures.pop(len(self.log) - 1, 0) or self.refusals.pop(name, 0)
                status = status or self.dead
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

    def _cuDeviceGetAttribute(self, attribute: int, device: int) -> int:
        assert attribute == 115
        return int(self.pools)

    def _cuDevicePrimaryCtxRetain(self, device: int) -> int:
        self.retained += 1
        return PRIMARY

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

    def _forbidden(self) -> bool:
        """Say whether this thread records, or is not to disturb one that does."""
        thread = threading.get_ident()
        mode = self._modes.get(thread, 0)
        return (thread in self._capturing.values() and mode < 2) or (self.recorded_elsewhere and mode < 1)

    def _cuThreadExchangeStreamCaptureMode(self, mode: int) -> int:
        thread = threading.get_ident()
        before, self._modes[thread] = self._modes.get(thread, 0), mode
        return before

    def _cuPointerGetAttribute(self, attribute: int, address: int) -> Any:
        if not self.holds(address, 1) or address in self._doomed:
            return BAD_VALUE, None
        index, context = self.placed.get(address, (0, PRIMARY))
        return context if attribute == 1 else index

    def _cuMemFree(self, address: int) -> Any:
        if self._forbidden():
            return (CAPTURING,)
        if address in self._doomed:
            return (BAD_HANDLE,)
        return self._release(address, "device memory")

    def _cuMemAllocAsync(self, size: int, stream: int) -> Any:
        if not self.pools or self.capturing(stream):
            return BAD_VALUE, None
        status, *address = (
            made if isinstance(made := self._memory("device memory", size), tuple) else (0, made)
        )
        if not status:
            self._pooled.add(address[0])
            self._unborn.add(address[0])
            self.enqueue(stream, lambda: self._unborn.discard(address[0]) or 0)
        return status, address[0]

    def _cuMemFreeAsync(self, address: int, stream: int) -> Any:
        if address not in self._pooled or address in self._doomed or self._stream(stream) is None:
            return (BAD_HANDLE,)
        self._doomed.add(address)
        return self.enqueue(stream, lambda: self._release(address, "device memory")[0])

    def _cuMemFreeHost(self, address: int) -> Any:
        return self._release(address, "pinned memory")

    def _memory(self, kind: str, size: int) -> Any:
        if self._forbidden():
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
            at not in self._unborn
            and self.live.get(at) == kind
            and at <= address
            and address + size <= at + len(block)
            for at, block in self._content.items()
            if self.live.get(at, "").endswith("memory")
        )

    def _cuMemcpyHtoDAsync(self, address: int, host: int, size: int, stream: int) -> Any:
        return self.enqueue(stream, Upload(self, address, host, size))

    def _cuMemcpyDtoHAsync(self, host: int, address: int, size: int, stream: int) -> Any:
        return self.enqueue(stream, lambda: self.copy(host, address, size, device=[address], pinned=[host]))

    def _cuMemcpyDtoDAsync(self, to: int, address: int, size: int, stream: int) -> Any:
        return self.enqueue(stream, lambda: self.copy(to, address, size, device=[address, to]))

    def _cuMemsetD8Async(self, address: int, value: int, size: int, stream: int) -> Any:
        zeros = ctypes.create_string_buffer(bytes([value]) * size, size)
        return self.enqueue(
            stream, lambda: self.copy(address, ctypes.addressof(zeros), size, device=[address], keep=zeros)
        )

    def _cuMemcpyDtoH(self, host: int, address: int, size: int) -> Any:
        status = self._cuStreamSynchronize(LEGACY_STREAM)[0]
        return (status or self.copy(host, address, size, device=[address]),)

    def copy(
        self, to: int, source: int, size: int, *, device: list[int], pinned: Any = (), keep: Any = None
    ) -> int:
        """Move bytes, between memory that must still be there."""
        if not all(self.holds(at, size) for at in device):
            return ILLEGAL_ADDRESS
        if not all(self.holds(at, size, "pinned memory") for at in pinned):
            return ILLEGAL_ADDRESS
        ctypes.memmove(to, source, size)
        return 0

    # Streams, events, graphs.

    def enqueue(self, stream: int, work: Work) -> Any:
        """Put work into a stream; or into its recording."""
        content = self._stream(stream)
        if content is None:
            return (BAD_HANDLE,)
        if content.recorded is not None:
            content.recorded.append(work)
        else:
            content.queue.append(work.launched() if isinstance(work, Upload) else work)
        return (0,)

    def _stream(self, handle: int) -> Any:
        return self._content.get(int(handle) or LEGACY_STREAM)

    def capturing(self, stream: int) -> bool:
        """Say whether a stream is recorded."""
        return self._stream(stream).recorded is not None

    def _cuStreamIsCapturing(self, stream: int) -> Any:
        if self._stream(stream) is None:
            return BAD_HANDLE, None
        return int(self.capturing(stream))

    def _cuStreamGetCtx(self, stream: int) -> Any:
        if self._stream(stream) is None:
            return BAD_HANDLE, None
        return self.contexts.get(stream, PRIMARY)

    def _cuStreamCreate(self, flags: int) -> int:
        assert flags == 1
        return self._made("stream", SimpleNamespace(queue=[], recorded=None))

    def _cuStreamDestroy(self, stream: int) -> Any:
        content = self._content.get(stream)
        released = self._release(stream, "stream")
        if content is not None and self._work_off(content):  # a destroyed stream's work still goes on
            self.faults.append("work of a destroyed stream failed")
        return released

    def _cuStreamSynchronize(self, stream: int) -> Any:
        content = self._stream(stream)
        if content is None:
            return (BAD_HANDLE,)
        return (CAPTURING,) if content.recorded is not None else (self._work_off(content),)

    def _work_off(self, content: Any, until: Any = None) -> int:
        """Do a stream's work, all of it or until a point is passed."""
        while content.queue and not (until is not None and until.passed):
            status = content.queue.pop(0)()
            if status:
                self.dead = status
                return status
        return 0

    def _cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> Any:
        point = self._content[event].point
        if point is None:
            return (0,)
        return self.enqueue(stream, lambda: self._work_off(point.content, point))

    def _cuEventCreate(self, flags: int) -> int:
        return self._made("event", SimpleNamespace(point=None))

    def _cuEventRecord(self, event: int, stream: int) -> Any:
        content = self._stream(stream)
        if content is None:
            return (BAD_HANDLE,)
        point = SimpleNamespace(passed=False, content=content)

        def pass_it() -> int:
            point.passed = True
            return 0

        content.queue.append(pass_it)
        self._content[event].point = point
        return None

    def _cuEventQuery(self, event: int) -> Any:
        point = self._content[event].point
        return (0,) if point is None or point.passed else (NOT_READY,)

    def _cuEventSynchronize(self, event: int) -> Any:
        point = self._content[event].point
        return (0,) if point is None else (self._work_off(point.content, point),)

    def _cuEventDestroy(self, event: int) -> Any:
        return self._release(event, "event")

    def _cuStreamBeginCapture(self, stream: int, mode: int) -> Any:
        assert mode == self.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        if self._content[stream].queue:  # legal, but nobody wants work before a capture to count as in it
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
        for kinds in (self._pooled, self._unborn, self._doomed):
            kinds.discard(handle)
        self._capturing.pop(handle, None)
        del self.live[handle], self._content[handle]
        return (0,)


CONTEXT_FREE = {
    "cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease", "cuCtxPushCurrent",
    "cuGetErrorName", "cuGetErrorString",
}  # fmt: skip


class Upload:
    """A copy from pinned memory, which must be the same when the GPU gets to it as when it was launched."""

    def __init__(self, cuda: FakeCuda, address: int, host: int, size: int) -> None:
        self.cuda, self.address, self.host, self.size = cuda, address, host, size
        self.expected: bytes | None = None

    def launched(self) -> Upload:
        """Return the same, with what the host memory holds now."""
        upload = Upload(self.cuda, self.address, self.host, self.size)
        if self.cuda.holds(self.host, self.size, "pinned memory"):
            upload.expected = ctypes.string_at(self.host, self.size)
        return upload

    def __call__(self) -> int:
        status = self.cuda.copy(self.address, self.host, self.size, device=[self.address], pinned=[self.host])
        if not status and ctypes.string_at(self.host, self.size) != self.expected:
            self.cuda.faults.append("pinned memory changed before the GPU had read it")
        return status
