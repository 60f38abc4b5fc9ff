"""Work on a stream of frames, in order and with bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Frame = TypeVar("Frame")
Result = TypeVar("Result")


def in_order(work: Callable[[Frame], Result], frames: Iterable[Frame], *, in_flight: int) -> Iterator[Result]:
    """Do ``work`` on each frame in a thread beside the caller's, and yield the results in order.

    An error, of a frame or of ``frames`` itself, is raised in its place. A consumer that stops early
    waits for the frame at work; those after it are not begun.
    """
    pending: deque[Future[Result]] = deque()
    worker = ThreadPoolExecutor(1, thread_name_prefix="psp_rt-stream")
    try:
        for start in _starts(work, frames, worker):
            pending.append(start)
            if len(pending) >= in_flight:  # after starting: waiting first would delay a camera by a frame
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        worker.shutdown(wait=True, cancel_futures=True)


def _starts(
    work: Callable[[Frame], Result], frames: Iterable[Frame], worker: ThreadPoolExecutor
) -> Iterator[Future[Result]]:
    """Start the work on each frame; an error of ``frames`` takes the place of its next frame."""
    source = iter(frames)
    while True:
        try:
            frame = next(source)
        except StopIteration:
            return
        except Exception as error:
            failed: Future[Result] = Future()
            failed.set_exception(error)
            yield failed
            return
        yield worker.submit(work, frame)
