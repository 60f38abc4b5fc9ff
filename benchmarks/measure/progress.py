"""What is going on: one line that changes in a terminal, a line for each step and round in a log."""

import sys
import time


class Progress:
    """Shows steps on standard error."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._last = ""

    def __call__(self, what: str, fraction: float | None) -> None:
        """Show what runs next, and which fraction is done where that is known."""
        if sys.stderr.isatty():
            end = "\n" if fraction is None else ""
            print(f"\r{self._line(what, fraction)[:110]:110}", end=end, file=sys.stderr, flush=True)
            return
        part = what if fraction is None else what.partition(":")[0]  # the round, without the call
        if part != self._last:
            print(self._line(part, fraction), file=sys.stderr, flush=True)
        self._last = part

    def _line(self, what: str, fraction: float | None) -> str:
        done = "    " if fraction is None else f"{fraction:4.0%}"
        return f"{time.monotonic() - self._start:6.0f} s  {done}  {what}"
