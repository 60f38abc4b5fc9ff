"""The stream that the recordings of one TensorRT backend run in, one after another, and who waits for it.

All work is in this one stream, also that for a caller's stream: it begins after what the caller's stream
holds, and the caller's stream goes on after it. So no two recordings ever touch the shared activations, or
the buffers of one recording, at the same time, whatever streams the calls come with.

It has not run on a GPU yet: the tests drive it with a stand-in for cuda-bindings.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..cuda import CudaDevice
from ..cuda_work import Event, Resources, Stream
from ..errors import BackendError
from .tensorrt_plans import LoadedPlans, Refused


class GpuFailed(Exception):
    """Work failed on the GPU after it was enqueued: its buffers hold nobody knows what."""

    def __init__(self, error: BackendError) -> None:
        super().__init__(str(error))
        self.error = error


@contextmanager
def failing_for_good() -> Iterator[None]:
    """Turn an error of work that is enqueued, or of waiting for it, into `GpuFailed`."""
    try:
        yield
    except Refused:
        raise
    except BackendError as error:
        raise GpuFailed(error) from error


class Lane:
    """What the recordings of one backend share: a stream, the points to wait for, and activation memory."""

    def __init__(self, plans: LoadedPlans, made: Resources) -> None:
        """Make them among the given resources, which the caller releases."""
        self.plans, self.made = plans, made
        self.stream: Stream = made.stream()
        self._done: Event = made.event()
        self._spare: list[Event] = []
        self._at_work: deque[tuple[Event, Any]] = deque()
        self.activation_bytes = plans.activation_bytes
        self.activations = made.device_memory(self.activation_bytes)

    @property
    def device(self) -> CudaDevice:
        """Return the GPU."""
        return self.plans.device

    def finish(self, enqueue: Callable[[], None]) -> None:
        """Enqueue work and wait for it.

        Raises:
            Refused: TensorRT would not enqueue it; what came before it has ended.
            GpuFailed: It failed, or whether it did is not known.
        """
        with self.waited_for(), failing_for_good():
            enqueue()

    @contextmanager
    def waited_for(self) -> Iterator[None]:
        """Wait for what is enqueued meanwhile."""
        with self._settling():
            yield
            with failing_for_good():
                self._done.record(self.stream)
                self._done.synchronize()
                self._release_finished()

    @contextmanager
    def between(self, caller: Stream, uses: Any) -> Iterator[None]:
        """Put what is enqueued meanwhile between the work of a caller's stream before and after it.

        Nothing waits here. What the work ``uses`` is kept until the GPU is through with it.
        """
        with self._settling():
            with failing_for_good():
                self._release_finished()
                done = self._spare.pop() if self._spare else self.made.event()
                self._done.record(caller)
                self.stream.wait(self._done)
            yield
            with failing_for_good():
                done.record(self.stream)
                caller.wait(done)
            self._at_work.append((done, uses))

    def settle(self) -> None:
        """Let nothing go on in buffers that are about to be filled anew or released."""
        with suppress(BackendError):
            self.stream.synchronize()

    def close(self) -> None:
        """Wait for all work, and let go of what it uses."""
        self.settle()
        self._at_work.clear()

    def _release_finished(self) -> None:
        while self._at_work and self._at_work[0][0].passed():
            self._spare.append(self._at_work.popleft()[0])

    @contextmanager
    def _settling(self) -> Iterator[None]:
        """Let nothing go on after an error, or an interrupt."""
        try:
            yield
        except BaseException:
            self.settle()
            raise
