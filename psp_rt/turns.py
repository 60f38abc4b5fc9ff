"""Calls of a backend take turns; closing is safe at any moment, from any thread and signal handler."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .backends.backend import Backend
from .errors import PspError, out_of_memory


class Turns:
    """A backend that one call at a time has for itself."""

    def __init__(self, backend: Backend) -> None:
        self._backend: Backend | None = backend
        self._turn = threading.RLock()  # a signal handler may close in the thread that has the turn
        self._busy = self._close_after = False
        self._process = os.getpid()

    @contextmanager
    def take(self) -> Iterator[Backend]:
        """Wait for a turn, and have the backend for the length of a block.

        Raises:
            PspError: It is closed, belongs to another process, or is at work in this very thread.
            OutOfMemoryError: The block ran out of memory.
        """
        if os.getpid() != self._process:  # before the lock, which may have been held when this process forked
            raise PspError(
                f"this translator was opened in process {self._process}, and this is process {os.getpid()}, "
                "where its threads do not exist; open the engine in each worker"
            )
        with self._turn:
            if self._backend is None:
                raise PspError("this translator is closed; open the engine again")
            if self._busy:
                raise PspError(
                    "a signal handler cannot use the translator whose call it interrupts; use a clone"
                )
            try:
                self._busy = True
                yield self._backend
            except MemoryError as error:
                advice = "open the engine with a smaller max_batch, or pass fewer pictures at once"
                raise out_of_memory(error, "this batch", advice) or error from error
            finally:
                self._busy = False
                if self._close_after:
                    self.close()

    def close(self) -> None:
        """Close the backend after the call in progress; if that is in this very thread, when it ends."""
        if os.getpid() != self._process:
            self._backend = None
            return
        with self._turn:
            if self._busy:
                self._close_after = True
                return
            backend, self._backend = self._backend, None
            if backend is not None:
                backend.close()
