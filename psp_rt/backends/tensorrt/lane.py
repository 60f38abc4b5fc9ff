"""The stream that recordings run in, one after another, who waits for it, and the memory they compute in.

All calls of a backend but `Translator.stream` share one lane, also with a caller's stream: their work begins
after what the caller's stream holds, and the caller's stream goes on after it. So no two recordings of a lane
touch the buffers of one recording at the same time, whatever streams the calls come with; and of all lanes of
a backend only one computes at any time, since `Activations` lets the next one wait.

It has not run on a GPU yet: the tests drive it with a stand-in for cuda-bindings.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ...cuda.device import CudaDevice, OutOfMemory
from ...cuda.work import Event, Resources, Stream
from ...errors import BackendError
from .plans import LoadedPlans, Refused


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
    except (Refused, OutOfMemory):  # nothing of it was begun
        raise
    except BackendError as error:
        raise GpuFailed(error) from error


class Activations:
    """The memory that the networks of one backend compute in, one after another in whatever lanes."""

    def __init__(self, plans: LoadedPlans, made: Resources) -> None:
        """Take it among the given resources, for the largest batch."""
        self._made = made
        self.size = plans.activation_bytes
        self.address = made.device_memory(self.size)
        self._free: Event | None = None  # after the work that was enqueued last; None in a single lane

    def share_with_others(self, first: Stream) -> None:
        """Keep an order from now on, behind what the first lane has in its stream; one lane needs none."""
        if self._free is None:
            free = self._made.event()
            free.record(first)
            self._free = free

    @contextmanager
    def in_turn(self, stream: Stream) -> Iterator[None]:
        """Let what is enqueued meanwhile begin when all work in this memory has ended, in any lane.

        Where the enqueuing fails no end is noted, so the caller must wait for its stream, as lanes do.
        """
        if self._free is None:
            yield
            return
        stream.wait(self._free)
        yield
        self._free.record(stream)


class Lane:
    """What recordings share: a stream, the points to wait for, and activation memory."""

    def __init__(self, plans: LoadedPlans, made: Resources, activations: Activations | None = None) -> None:
        """Make them among the given resources, which the caller releases.

        Args:
            activations: Of another lane; by default, memory of its own.
        """
        self.plans, self.made = plans, made
        self.stream: Stream = made.stream()
        self._done: Event = made.event()
        self._spare: list[Event] = []
        self._at_work: deque[tuple[Event, Any]] = deque()
        self.activations = activations or Activations(plans, made)

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
