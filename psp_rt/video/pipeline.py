"""Stages that work at the same time, each in a thread, with short queues between them.

Items stay in order, because each stage is one thread. An error of a stage, or of the source, arrives in the
place of its item. Whoever stops early closes the generator, and all threads end.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")

WAITING = 4  # items that may wait between two stages
CHECK_SECONDS = 0.2  # how often a waiting thread looks whether it should end
STOP_SECONDS = 1.0  # that a source has to end when it is told to stop
ABANDON_SECONDS = 1.0  # a source that does not end by then (a dead camera) is left to end with the process


@dataclass
class StageTimes:
    """Where the time of a stage went, in seconds."""

    name: str
    items: int = 0
    working: float = 0.0
    starved: float = 0.0  # waiting for the stage before
    blocked: float = 0.0  # waiting for the stage after


@dataclass(frozen=True)
class _Failure:
    error: BaseException


_END = object()


class Pipeline(Generic[Item]):
    """A source and stages, to be iterated once.

    Args:
        source: Its items are taken in a thread of their own.
        stages: Names and functions; each gets the item of the one before.
        waiting: How many items may wait between two stages.
        stop: When it is set, the source has a moment to end; then its next item is waited for no more.
    """

    def __init__(
        self,
        source: Iterable[Item],
        stages: Sequence[tuple[str, Callable[[Item], Item]]],
        *,
        source_name: str = "read",
        waiting: int = WAITING,
        stop: threading.Event | None = None,
    ) -> None:
        self._source, self._stages = source, stages
        self._queues: list[queue.Queue[Any]] = [queue.Queue(waiting) for _ in range(len(stages) + 1)]
        self._ending, self._stop = threading.Event(), stop or threading.Event()
        self.abandoned = False  # whether a thread still waits for the source, which may not be closed then
        self.times = [StageTimes(source_name), *(StageTimes(name) for name, _ in stages)]

    def __iter__(self) -> Iterator[Item]:
        """Yield the items that went through all stages."""
        threads = [threading.Thread(target=self._feed, name="psp_rt-read", daemon=True)]
        threads += [
            threading.Thread(target=self._work, args=(number,), name=f"psp_rt-{name}", daemon=True)
            for number, (name, _) in enumerate(self._stages)
        ]
        for thread in threads:
            thread.start()
        try:
            while True:
                item = self._get(self._queues[-1])
                if item is _END:
                    return
                if isinstance(item, _Failure):
                    raise item.error
                yield item
        finally:
            self._ending.set()
            deadline = time.monotonic() + ABANDON_SECONDS
            for thread in threads[1:]:
                thread.join()
            threads[0].join(max(0.0, deadline - time.monotonic()))
            self.abandoned = threads[0].is_alive()

    def _feed(self) -> None:
        times, target = self.times[0], self._queues[0]
        source = iter(self._source)
        while not self._ending.is_set():
            begin = time.perf_counter()
            try:
                item: Any = next(source, _END)
            except BaseException as error:  # it belongs to the consumer, whatever it is
                item = _Failure(error)
            done = time.perf_counter()
            times.working += done - begin
            times.items += item is not _END
            self._put(target, item)
            times.blocked += time.perf_counter() - done
            if item is _END or isinstance(item, _Failure):
                return

    def _work(self, number: int) -> None:
        times, work = self.times[number + 1], self._stages[number][1]
        source, target = self._queues[number], self._queues[number + 1]
        while not self._ending.is_set():
            begin = time.perf_counter()
            item = self._get(source)
            start = time.perf_counter()
            times.starved += start - begin
            ends = item is _END or isinstance(item, _Failure)
            if not ends:
                try:
                    item = work(item)
                except BaseException as error:
                    item, ends = _Failure(error), True
                times.items += 1
            done = time.perf_counter()
            times.working += done - start
            self._put(target, item)
            times.blocked += time.perf_counter() - done
            if ends:
                return

    def _get(self, source: queue.Queue[Any]) -> Any:
        patience = STOP_SECONDS
        while not self._ending.is_set():
            try:
                return source.get(timeout=CHECK_SECONDS)
            except queue.Empty:
                patience -= CHECK_SECONDS * self._stop.is_set()
                if source is self._queues[0] and patience <= 0:
                    break
        return _END

    def _put(self, target: queue.Queue[Any], item: Any) -> None:
        while not self._ending.is_set():
            try:
                return target.put(item, timeout=CHECK_SECONDS)
            except queue.Full:
                continue
