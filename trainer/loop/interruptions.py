"""Stopping between two steps, so that what is saved is a whole state."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from psp_rt.errors import PspError

GRACE_S = 1.0  # torchrun passes on a Ctrl-C that the terminal has sent already: one wish, two signals


class Interrupted(PspError):
    """The run was asked to stop, and saved its state."""

    def __init__(self, images_seen: int, latest: Path) -> None:
        super().__init__(
            f"stopped after {images_seen} images; {latest} holds everything. "
            "Run the same command again to resume"
        )


@contextmanager
def interruptions() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether Ctrl-C was pressed or the process was asked to end.

    Another Ctrl-C ends at once, without saving.
    """
    asked_at: float | None = None

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked_at
        now = time.monotonic()
        if asked_at is not None and number == signal.SIGINT and now - asked_at >= GRACE_S:
            raise KeyboardInterrupt
        asked_at = asked_at or now

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # signals reach the main thread alone
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked_at is not None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
