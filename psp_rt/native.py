"""Calls into the runtimes' native code, for which a fork and the end of the process wait.

CPython before 3.14 ends a daemon thread that comes back from native code while the interpreter is ending: it
unwinds the thread's stack, which C++ answers with ``terminate called`` and SIGABRT. And a child that is
forked off while another thread is inside a runtime inherits locks that nobody will ever release.

So each thread has a lock that it holds while in native code. A fork first takes all of them. The end of the
process lets no call begin any more, waits for those under way, and closes what is open.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import threading
import weakref
from contextlib import ExitStack
from typing import Protocol

from .errors import PspError

# In the order in which a fork takes them, and all the threads' locks between the two.
_guards_locks, _guards_owners = threading.RLock(), threading.RLock()
_locks: weakref.WeakSet[threading.RLock] = weakref.WeakSet()
_owners: weakref.WeakSet[Closable] = weakref.WeakSet()
_own = threading.local()
_ending, _fork_waits = threading.Event(), threading.Event()
_forking = ExitStack()


class Closable(Protocol):
    """What owns objects of a runtime."""

    def close(self) -> None:
        """Release them. Closing twice is allowed."""


def calling() -> threading.RLock:
    """Return this thread's lock, to be held by ``with`` while it is in native code.

    Only a lock of CPython's own can be taken so that no signal strikes before its release is certain.
    """
    if not hasattr(_own, "lock"):
        lock = threading.RLock()
        with _guards_locks:
            _locks.add(lock)
        _own.lock = lock
    own: threading.RLock = _own.lock
    if _fork_waits.is_set() and not own._is_owned():  # type: ignore[attr-defined]
        with _guards_locks:  # a thread that calls again and again would hardly ever let a fork through
            pass
    return own


def owns(owner: Closable) -> None:
    """Note what the end of this process closes, and what a forked child must never destroy."""
    with _guards_owners:
        _owners.add(owner)


def check_not_ending() -> None:
    """Raise PspError if this process is ending; to be called with the lock of `calling` held."""
    if _ending.is_set():
        raise PspError("the process is ending, so nothing more is run; end threads before the main thread")


def _before_fork() -> None:
    """Wait until no other thread is in native code, and keep it so."""
    _forking.enter_context(_guards_locks)
    _forking.callback(_fork_waits.clear)
    _fork_waits.set()
    for lock in list(_locks):
        _forking.enter_context(lock)
    _forking.enter_context(_guards_owners)


def _after_fork() -> None:
    _forking.close()


def _after_fork_in_child() -> None:
    """Let this process, just forked off, end without waiting for threads that it has not.

    What its parent opened is never destroyed. ONNX Runtime also has a handler of its own for the end of the
    process, which hangs (1.32, glibc): so the process ends before it, as those of multiprocessing do, with
    its status.
    """
    for owner in list(_owners):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))
    _owners.clear()
    _forking.close()
    libc = ctypes.CDLL(None) if "onnxruntime" in sys.modules and sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "on_exit"):
        libc.on_exit(libc._exit, None)  # called with the status, before all handlers from before the fork


def _at_exit() -> None:
    """Let no call begin any more, wait for those under way, and close what is open."""
    _ending.set()
    try:
        with _guards_locks:
            locks = list(_locks)
        for lock in locks:
            with lock:
                pass
        with _guards_owners:
            owners = list(_owners)
        with ExitStack() as closing:  # all, even if one fails
            for owner in owners:
                closing.callback(owner.close)
    except KeyboardInterrupt:  # again: to go on would end in SIGABRT
        os._exit(128 + 2)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
