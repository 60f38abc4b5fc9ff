"""Work on a stream of frames, with results in order and bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

from .errors import InputError

Frame = TypeVar("Frame")
Result = TypeVar("Result")


class _OfSource(Future[Result]):
    """The error of the source, after which there are no frames."""


def check_frames(frames: object) -> None:
    """Refuse a single picture: a path would be read letter by letter, and an array row by row."""
    single = isinstance(frames, (str, bytes, os.PathLike)) or hasattr(frames, "getbands")
    if single or 2 <= getattr(frames, "ndim", 0) <= 3:
        raise InputError("stream() takes many pictures, such as a list or a generator; use run() for one")


def in_order(
    frames: Iterable[Frame],
    workers: Sequence[Callable[[Frame], Result]],
    *,
    in_flight: int,
    at_once: Callable[[Frame], bool] = lambda frame: False,
    skip: Callable[[Exception], bool] = lambda error: False,
) -> Iterator[Result]:
    """Work on frames in threads, and yield the results in the order of the frames.

    An error, of a frame or of ``frames`` itself, is raised in its place. A consumer that stops early waits
    for the frames at work; those after them are not begun.

    Args:
        frames: Taken as they are needed.
        workers: Each is called by one thread at a time.
        in_flight: How many frames may be at work or wait for the consumer.
        at_once: Frames that must be worked on in the consumer's own thread, by the first worker.
        skip: Errors of frames that have no result instead of ending all; never asked about one of ``frames``.
    """
    pending: deque[Future[Result]] = deque()
    free: SimpleQueue[Callable[[Frame], Result]] = SimpleQueue()
    for worker in workers:
        free.put(worker)

    def work(frame: Frame) -> Result:
        worker = free.get()
        try:
            return worker(frame)
        finally:
            free.put(worker)

    def begin(frame: Frame) -> Future[Result]:
        return _done(workers[0], frame) if at_once(frame) else threads.submit(work, frame)

    threads = ThreadPoolExecutor(len(workers), thread_name_prefix="psp_rt-stream")
    try:
        for begun in _begun(frames, begin):
            pending.append(begun)
            if len(pending) >= in_flight:  # after starting: waiting first would delay a camera by a frame
                yield from _result(pending.popleft(), skip)
        while pending:
            yield from _result(pending.popleft(), skip)
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _begun(frames: Iterable[Frame], begin: Callable[[Frame], Future[Result]]) -> Iterator[Future[Result]]:
    """Begin the work on each frame; an error of ``frames`` takes the place of its next frame."""
    source = iter(frames)
    while True:
        try:
            frame = next(source)
        except StopIteration:
            return
        except Exception as error:
            ended: _OfSource[Result] = _OfSource()
            ended.set_exception(error)
            yield ended
            return
        yield begin(frame)


def _result(done: Future[Result], skip: Callable[[Exception], bool]) -> Iterator[Result]:
    """Yield the result, or nothing where its error is skipped."""
    try:
        result = done.result()
    except Exception as error:
        if isinstance(done, _OfSource) or not skip(error):
            raise
        return
    yield result


def _done(work: Callable[[Frame], Result], frame: Frame) -> Future[Result]:
    done: Future[Result] = Future()
    try:
        done.set_result(work(frame))
    except Exception as error:
        done.set_exception(error)
    return done
