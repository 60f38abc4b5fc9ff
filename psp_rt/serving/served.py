"""An engine that is served: clones that work in threads, and a queue of bounded length before them."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import PspError
from ..hardware.choose import BackendName, Device, Precision
from ..hardware.probe import default_threads
from ..translator import Translator

T = TypeVar("T")
MOST_WORKERS = 16


class Busy(Exception):
    """As many requests wait as may."""


class TooSlow(Exception):
    """The time for a request is over."""


class ClientLeft(Exception):
    """Nobody waits for the result any more."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What the engines run on, as for `Translator`."""

    device: Device = "auto"
    backend: BackendName = "auto"
    precision: Precision = "auto"
    threads: int | None = None
    workers: int | None = None


class Served:
    """One engine: its clones take requests in turn.

    Args:
        name: In requests and on the page.
        translators: Clones of one translator; each works on one request at a time.
    """

    def __init__(self, name: str, translators: list[Translator]) -> None:
        self.name, self.manifest, self.runs_on = name, translators[0].manifest, translators[0].runs_on
        self.backend, self.precision = translators[0].backend, translators[0].precision
        self.workers = len(translators)
        self._idle: queue.SimpleQueue[Translator] = queue.SimpleQueue()
        for translator in translators:
            self._idle.put(translator)
        self._threads = ThreadPoolExecutor(len(translators), thread_name_prefix=f"psp_rt-{name}")
        self._pending, self._counting = 0, threading.Lock()

    @classmethod
    def open(cls, path: Path, hardware: Hardware | None = None, *, name: str | None = None) -> Served:
        """Open an engine, with one worker for every two cores unless told otherwise.

        Raises:
            PspError: As for `Translator`.
        """
        wanted = hardware or Hardware()
        cores = default_threads()
        workers = wanted.workers or max(1, min(MOST_WORKERS, cores // 2))
        first = Translator(
            path,
            device=wanted.device,
            backend=wanted.backend,
            precision=wanted.precision,
            color="rgb",
            threads=wanted.threads or max(1, cores // workers),
        )
        try:
            clones = [first.clone() for _ in range(workers - 1)]
        except PspError:
            first.close()
            raise
        return cls(name or path.stem, [first, *clones])

    @property
    def pending(self) -> int:
        """How many requests are at work or wait."""
        return self._pending

    async def submit(
        self,
        work: Callable[[Translator], T],
        *,
        queue_length: int,
        seconds: float,
        left: Callable[[], Awaitable[Any]] | None = None,
    ) -> T:
        """Do a request's work on a clone, in a thread.

        Args:
            work: Gets a clone for itself.
            queue_length: How many requests may wait.
            seconds: After which the client is sent away; work that has begun goes on to its end.
            left: Returns when the client has gone; work that has not begun is then dropped.

        Raises:
            Busy, TooSlow, ClientLeft: There is no result; what `work` raises is raised, too.
        """
        with self._counting:
            if self._pending >= self.workers + queue_length:
                raise Busy
            self._pending += 1
        future = self._threads.submit(self._work, work)
        future.add_done_callback(self._done)
        waiting = asyncio.ensure_future(asyncio.wrap_future(future))
        gone = asyncio.ensure_future(left()) if left is not None else None
        try:
            tasks = [waiting, *([gone] if gone is not None else [])]
            await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            raise ClientLeft if gone is not None and gone.done() else TooSlow
        finally:
            for task in (waiting, gone):
                if task is not None and not task.done():
                    task.cancel()  # work that has not begun never does
                    with suppress(asyncio.CancelledError):
                        await task

    def _work(self, work: Callable[[Translator], T]) -> T:
        translator = self._idle.get()  # there are as many as threads
        try:
            return work(translator)
        finally:
            self._idle.put(translator)

    def _done(self, future: Future[Any]) -> None:
        with self._counting:
            self._pending -= 1
        if not future.cancelled():
            future.exception()  # looked at, even if the client has gone

    def close(self) -> None:
        """Wait for the work in progress, then release the memory."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        while not self._idle.empty():
            self._idle.get().close()


def names_of(paths: list[Path]) -> list[str]:
    """Return a name for each engine: its stem, numbered where several have the same."""
    names: list[str] = []
    for path in paths:
        stem = path.stem or os.fspath(path)
        count = sum(name == stem or name.startswith(f"{stem}-") for name in names)
        names.append(f"{stem}-{count + 1}" if count else stem)
    return names
