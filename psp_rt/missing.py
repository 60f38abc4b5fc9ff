"""A missing package as a message instead of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

OURS = {"psp_rt", "export", "trainer", "benchmarks"}


@contextmanager
def explained(*, needed_for: str, install: str) -> Iterator[None]:
    """End the program with the command that installs what an import misses.

    Modules of our own that are missing are a bug, and keep their traceback.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if not name or name in OURS:
            raise
        sys.exit(f"Error: {needed_for} needs {name}, which is not installed; install it with: {install}")
