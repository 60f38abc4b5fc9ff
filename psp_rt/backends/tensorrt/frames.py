"""Frames of a stream: while one computes, the next one is uploaded and the one before is downloaded.

Each frame at work has a lane of its own, which is a CUDA stream, pinned memory, buffers on the GPU, execution
contexts and graphs. With two lanes, A and B, in steady state:

    A   upload 1   compute 1               download 1   upload 3        compute 3
    B              upload 2    (wait)      compute 2                    download 2   upload 4

What holds, and makes this right:

- Activations, the bulk of the memory, are one block for all lanes of a backend, because only one of them
  computes at any time: every launch waits, on the GPU, for an event at the end of the launch before it, in
  whatever lane that was (`Activations.in_turn`). Uploads and downloads touch no activations and do not wait.
- So they are not part of the graph: it would take its turn with them.
- The buffers and pinned memory of a lane belong to one frame until its result is taken or abandoned; only
  then is the lane free for another. The result is a copy, and the caller's.
- Frames begin under the translator's lock, by one thread at a time. They are waited for without it, or no
  frame could begin meanwhile; a lane's own lock keeps it from being released under who waits.

It has not run on a GPU yet: the tests drive it with stand-ins for cuda-bindings and TensorRT.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from contextlib import ExitStack, suppress
from functools import partial

from ...cuda.device import OutOfMemory
from ...cuda.work import Event, Resources
from ...errors import BackendError
from ...images import Pixels
from ...streaming import AtWork
from ...style import Codes
from .lane import Lane, failing_for_good
from .recordings import Recordings
from .translation import Translation

MOST_LANES = 4  # of a backend, whatever in_flight says and however many streams there are

log = logging.getLogger("psp_rt")


class FrameTranslation(Translation):
    """Between pinned buffers, whose copies are enqueued beside the graph."""

    def begin(self, images: Pixels, reference: Codes, weights: Codes) -> None:
        """Enqueue a translation; arguments as for `HostTranslation.run`.

        Raises:
            GpuFailed: The GPU failed.
        """
        self._fill_mix(reference, weights)
        self._host["image"][:] = images
        with failing_for_good():
            self._lane.stream.upload(self._image, self._upload)
            self._launch()
            self._lane.stream.download(self._download, self._picture)

    @property
    def pictures(self) -> Pixels:
        """Return the pictures [N * K, height, width, 3] of the last run, once it is over: a view."""
        pictures: Pixels = self._host["pictures"]
        return pictures

    def _prepare(self, made: Resources) -> None:
        super()._prepare(made)
        self._upload = self._pinned(self._encoder.network.inputs[0], self._images, name="image")
        self._download = self._pinned(self._generator.network.output, self._pictures, name="pictures")


class FrameLane:
    """A lane for one frame at a time."""

    def __init__(self, first: Lane) -> None:
        """Make it beside a backend's first lane, on the same activations.

        Raises:
            BackendError: There is too little memory.
        """
        first.activations.share_with_others(first.stream)
        self.held, self.closed = threading.Lock(), False
        self._device = first.device
        with Resources(first.device) as made:
            self._made = made
            self._lane = Lane(first.plans, made, first.activations)
            self._done: Event = made.event()
        self._recordings = Recordings()
        self._at_work: FrameTranslation | None = None

    def begin(self, images: Pixels, reference: Codes, weights: Codes) -> None:
        """Enqueue the translation of a frame; whatever fails, nothing goes on afterwards.

        Raises:
            BackendError: A size that is new cannot be recorded.
            GpuFailed: The GPU failed.
        """
        key = (len(images), len(reference))
        try:
            recording = self._recordings.get("frame", key, partial(FrameTranslation, self._lane, *key))
            recording.begin(images, reference, weights)
            with failing_for_good():
                self._done.record(self._lane.stream)
        except BaseException:
            self._lane.settle()
            raise
        self._at_work = recording

    def result(self) -> Pixels:
        """Wait for the frame, and return its pictures in memory of the caller's own.

        Raises:
            GpuFailed: The results cannot be trusted.
        """
        assert self._at_work is not None
        try:
            with failing_for_good():
                self._done.synchronize()
            return self._at_work.pictures.copy()
        except BaseException:
            self._lane.settle()
            raise

    def settle(self) -> None:
        """Wait for the frame, whose result nobody wants; also where this thread records a graph."""
        # Where the GPU has failed, its first error is on the way already, and must not give way to this one.
        with suppress(BackendError), self._device.current(), self._device.in_any_capture():
            self._lane.settle()

    def close(self) -> None:
        """Release everything, when nobody waits for it any more."""
        with self.held, ExitStack() as releases:
            self.closed, self._at_work = True, None  # who waits must not keep TensorRT's objects alive
            releases.callback(self._made.close)
            releases.callback(self._recordings.close)
            releases.callback(self._lane.close)


class FrameLanes:
    """The lanes for frames of one backend; they are made when they are needed, and kept."""

    def __init__(self, first: Lane) -> None:
        """Begin without any, beside the backend's lane for all other calls."""
        self._first = first
        self._lanes: list[FrameLane] = []
        self._idle: deque[FrameLane] = deque()  # lanes come back from other threads
        self._memory_is_short = False

    def begin(self, images: Pixels, reference: Codes, weights: Codes) -> AtWork[Pixels] | None:
        """Begin the translation of a frame; None where there is no lane, or was no memory for one.

        Raises:
            BackendError: It cannot be recorded.
            GpuFailed: The GPU failed; also raised by waiting for the frame.
        """
        try:
            lane = self._free_lane()
            if lane is None:
                return None
            try:
                lane.begin(images, reference, weights)
            except BaseException:
                self._idle.append(lane)
                raise
        except OutOfMemory as error:
            log.warning("frames go one after another from now on, in_flight=1: %s", str(error))
            self._memory_is_short = True  # or every frame would try again, and take its time
            self.drop_idle()
            return None
        return AtWork(finish=partial(self._finish, lane), abandon=partial(self._abandon, lane))

    def drop_idle(self) -> bool:
        """Release the lanes that no frame is in, and return whether there were any."""
        idle = [self._idle.popleft() for _ in range(len(self._idle))]
        with ExitStack() as releases:
            for lane in idle:
                self._lanes.remove(lane)
                releases.callback(lane.close)
        return bool(idle)

    def close(self) -> None:
        """Release all lanes; a frame that is still in one is lost, which who waits for it is told."""
        with ExitStack() as releases:
            for lane in self._lanes:
                releases.callback(lane.close)
        self._lanes, self._idle = [], deque()

    def _free_lane(self) -> FrameLane | None:
        if self._idle:
            return self._idle.popleft()
        if self._memory_is_short or len(self._lanes) >= MOST_LANES:
            return None
        self._lanes.append(FrameLane(self._first))
        return self._lanes[-1]

    def _finish(self, lane: FrameLane) -> Pixels:
        with lane.held:
            if lane.closed:
                raise BackendError("the translator was closed with the frame at work; open the engine again")
            try:
                with self._first.device.current():
                    return lane.result()
            finally:
                self._idle.append(lane)

    def _abandon(self, lane: FrameLane) -> None:
        with lane.held:
            if not lane.closed:
                lane.settle()
                self._idle.append(lane)
