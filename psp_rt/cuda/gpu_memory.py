"""Memory on a GPU for results, and when it is freed.

It has not run on a GPU yet: the tests drive it with a stand-in for cuda-bindings.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

from ..errors import BackendError
from .device import CudaDevice
from .stream_forms import PER_THREAD_DEFAULT
from .work import Event, Resources, Stream


class GpuMemory:
    """Some bytes on a GPU and the point after which they hold their result; freed with their last user.

    ``cuMemFree`` waits for the GPU, so nothing that a consumer has begun loses its memory. Memory that is
    made for a stream comes from the device's pool, where it has one, and is freed in the order of that
    stream instead, which nobody waits for. That is right for work in that stream alone: memory that was
    lent to another one is freed as the first kind is. (Kernels on another GPU cannot read a pool's memory.)
    """

    def __init__(self, index: int, size: int, *, stream: int | None = None, owner: Any = None) -> None:
        """Take the memory.

        Args:
            index: The GPU's number.
            size: In bytes.
            stream: Where it is used.
            owner: Of the stream, kept as long as the memory.

        Raises:
            BackendError: There is too little.
        """
        self.device = CudaDevice(index)
        self._made = Resources(self.device)
        self._stream: Stream | None = None  # in whose order it is freed
        self._lent_elsewhere, self._owner = False, owner
        with self.device.current(), self._made as made:
            self.ready: Event = made.event()
            if stream == PER_THREAD_DEFAULT:
                stream = None  # one handle for a stream of each thread, and which one frees it is not known
            if stream is not None and self.device.has_memory_pool():
                ordered = Stream(self.device, stream)
                self.address: int = ordered.new_memory(size)
                self._stream = ordered
            else:
                self.address = made.device_memory(size)

    def lend(self, stream: int | None) -> None:
        """Note that it is used in a stream, of which None says that it is not known."""
        self._lent_elsewhere |= self._stream is None or stream != self._stream.number

    def __del__(self) -> None:
        """Free it, after the work that fills it."""
        if sys.is_finalizing():
            return
        with suppress(Exception):  # it may not have come into being; a GPU that failed frees nothing
            try:
                with self.device.current(), self.device.in_any_capture():
                    self._free()
            finally:
                self.device.close()

    def _free(self) -> None:
        if not hasattr(self, "address"):  # it has not come into being, and the event is gone already
            return
        if self._stream is None:
            with suppress(Exception):
                self.ready.synchronize()
        elif not self._freed_in_order(self._stream):
            self._free_when_all_has_ended()
        self._made.close()

    def _freed_in_order(self, stream: Stream) -> bool:
        """Free it behind the work in its stream, and return whether that could be done."""
        try:
            if self._lent_elsewhere or stream.being_captured():  # it would become a part of the recording
                return False
            stream.wait(self.ready)
            stream.free_memory(self.address)
        except BackendError:  # the stream is gone, though it should not be
            return False
        return True

    def _free_when_all_has_ended(self) -> None:
        """Free memory of the pool when the GPU is through with all work, in whatever streams.

        ``cuMemFree`` does not wait for memory of a pool, and ``cuCtxSynchronize`` would spoil recordings
        of other threads. To free a little ordinary memory does the one without the other.
        """
        with suppress(Exception):
            self.ready.synchronize()
        little = Resources(self.device)
        little.device_memory(1)
        little.close()
        self.device.call("cuMemFree", self.address)
