"""Counting who holds what clones share, so that the last one frees it."""

from __future__ import annotations

import threading


class Users:
    """One user at first; clones in several threads come and go."""

    def __init__(self) -> None:
        """Count whoever made it."""
        self._count, self._counting = 1, threading.Lock()

    def join(self) -> None:
        """Count one more."""
        with self._counting:
            self._count += 1

    def leave(self) -> bool:
        """Count one less, and return whether that was the last one."""
        with self._counting:
            self._count -= 1
            return self._count == 0
