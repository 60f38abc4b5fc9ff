"""Work on a stream of frames, in order and with bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from .errors import InputError

Frame = TypeVar("Frame")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class AtWork(Generic[Result]):
    """Work that has begun. One of the two is called, once."""

    finish: Callable[[], Result]  # waits for the result
    abandon: Callable[[], None]  # lets go of it, where nobody wants the result


def check_frames(frames: object) -> None:
    """Refuse one picture: a path would be taken letter by letter, and an array row by row."""
    one = isinstance(frames, (str, bytes, os.PathLike)) or hasattr(frames, "getbands")
    if one or 2 <= getattr(frames, "ndim", 0) <= 3:
        raise InputError("stream() takes many pictures, such as a list or a generator; use run() for one")


def finished(result: Result) -> AtWork[Result]:
    """Return work that is over."""
    return AtWork(finish=lambda: result, abandon=lambda: None)


def in_order(
    start: Callable[[Frame], AtWork[Result]],
    frames: Iterable[Frame],
    *,
    in_flight: int,
    at_once: Callable[[Frame], bool] = lambda frame: False,
) -> Iterator[Result]:
    """Start work on each frame in a thread beside the caller's, and yield the results in order.

    Frames that are to be started ``at_once`` are, in the caller's own thread. The results are waited for in
    the caller's thread, so that the next frame's work is started meanwhile.

    An error, of a frame or of ``frames`` itself, is raised in its place. A consumer that stops early
    waits for the frames at work; those after them are not begun.
    """
    pending: deque[Future[AtWork[Result]]] = deque()
    worker = ThreadPoolExecutor(1, thread_name_prefix="psp_rt-stream")
    try:
        for begun in _starts(start, frames, worker, at_once):
            pending.append(begun)
            if len(pending) >= in_flight:  # after starting: waiting first would delay a camera by a frame
                yield pending.popleft().result().finish()
        while pending:
            yield pending.popleft().result().finish()
    finally:
        worker.shutdown(wait=True, cancel_futures=True)
        for begun in pending:
            _abandon(begun)


def _starts(
    start: Callable[[Frame], AtWork[Result]],
    frames: Iterable[Frame],
    worker: ThreadPoolExecutor,
    at_once: Callable[[Frame], bool],
) -> Iterator[Future[AtWork[Result]]]:
    """Start the work on each frame; an error of ``frames`` takes the place of its next frame."""
    source = iter(frames)
    while True:
        try:
            frame = next(source)
        except StopIteration:
            return
        except Exception as error:
            yield _failed(error)
            return
        yield _started(start, frame) if at_once(frame) else worker.submit(start, frame)


def _started(start: Callable[[Frame], AtWork[Result]], frame: Frame) -> Future[AtWork[Result]]:
    begun: Future[AtWork[Result]] = Future()
    try:
        begun.set_result(start(frame))
    except Exception as error:
        return _failed(error)
    return begun


def _failed(error: Exception) -> Future[AtWork[Result]]:
    begun: Future[AtWork[Result]] = Future()
    begun.set_exception(error)
    return begun


def _abandon(begun: Future[AtWork[Result]]) -> None:
    """Let go of work that was begun, if it was, and has not failed."""
    if not begun.cancelled() and begun.exception() is None:
        begun.result().abandon()
