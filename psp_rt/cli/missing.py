"""What ends a program while it still imports, as a message instead of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
OURS = {"psp_rt", "export", "trainer", "benchmarks"}


@contextmanager
def explained(*, needed_for: str, install: str) -> Iterator[None]:
    """End the program with the command that installs what an import misses, or in a word at Ctrl-C.

    PyTorch takes seconds to import. Modules of our own that are missing are a bug, and keep their traceback.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if not name or name in OURS:
            raise
        sys.exit(f"Error: {needed_for} needs {name}, which is not installed; install it with: {install}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
