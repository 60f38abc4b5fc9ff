"""Build and load the stand-in for NVIDIA's driver, driver_stub.c, and tell what happened in it.

`cuda.bindings.driver` and `cuda.core` then run over it as they are: they load libcuda.so.1 by that name,
and the dynamic linker finds the stand-in, which has it.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("driver_stub.c")
KINDS = ("device memory", "pinned memory", "stream", "event", "graph", "executable")
NO_MEMORY, ILLEGAL_ADDRESS, CAPTURING = 2, 700, 900  # CUresult, cuda.h
LEGACY_STREAM = 1
RELEASES = ("Destroy", "Free", "Release", "Pop")  # in the names of calls

_HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def obstacle() -> str:
    """Return why the stand-in cannot be used here; empty if it can."""
    if sys.platform != "linux":
        return "the driver stand-in is for Linux"
    if shutil.which("gcc") is None:
        return "the driver stand-in needs gcc to be built"
    if _library() is None:
        return "there is an NVIDIA driver here, and the stand-in would take its place: see make gpu-test"
    return ""


@cache
def _library() -> Any:
    """Load the stand-in; None if there is a real driver."""
    try:
        ctypes.CDLL("libcuda.so.1")
        return None
    except OSError:
        pass
    folder = Path(tempfile.mkdtemp(prefix="psp-rt-driver-"))
    output = folder / "libcuda.so.1"
    command = ["gcc", "-O1", "-shared", "-fPIC", "-pthread", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([*command, "-o", output, SOURCE, "-ldl"], check=True)
    library = ctypes.CDLL(str(output), mode=ctypes.RTLD_GLOBAL)
    shutil.rmtree(folder)
    library.stub_call.restype = ctypes.c_char_p
    for name in ("stub_call_count", "stub_live_count", "stub_live_handle", "stub_live_size"):
        getattr(library, name).restype = ctypes.c_size_t
    return library


class Switch:
    """Whether this process has the stand-in's GPU; off is what a test's monkeypatch goes back to."""

    _on = False

    @property
    def on(self) -> bool:
        """Return whether there is a GPU."""
        return self._on

    @on.setter
    def on(self, value: bool) -> None:
        self._on = value
        if not value:
            _library().stub_stop()


SWITCH = Switch()


class DriverStub:
    """The driver of this process; a new one forgets everything before."""

    def __init__(self, gpus: int = 1) -> None:
        self._library = _library()
        self._library.stub_start(gpus)
        self._log: list[str] = []
        self._callbacks: list[Any] = []

    def stop(self) -> None:
        """Let the process have no GPU again."""
        self._library.stub_stop()

    @property
    def log(self) -> list[str]:
        """The names of all calls so far."""
        new = range(len(self._log), self._library.stub_call_count())
        self._log += [self._library.stub_call(at).decode() for at in new]
        return list(self._log)

    @property
    def calls(self) -> Counter[str]:
        """How often each call was made."""
        return Counter(self.log)

    @property
    def live(self) -> list[str]:
        """What was made and is not released, by kind."""
        return [KINDS[self._library.stub_live_kind(at)] for at in range(self._library.stub_live_count())]

    def sizes(self, kind: str) -> list[int]:
        """The sizes of live memory of a kind."""
        sizes = [self._library.stub_live_size(at) for at in range(self._library.stub_live_count())]
        return [size for size, found in zip(sizes, self.live, strict=True) if found == kind]

    @property
    def faults(self) -> int:
        """How often pinned memory changed before the GPU had read it."""
        return int(self._library.stub_faults())

    @property
    def retained(self) -> int:
        """How many users the primary context has."""
        return int(self._library.stub_retained())

    @property
    def waiting(self) -> int:
        """How much work is enqueued and not done."""
        return int(self._library.stub_waiting())

    @property
    def dead(self) -> int:
        """The status that every call returns since the GPU failed."""
        return int(self._library.stub_dead())

    def fail_with(self, status: int) -> None:
        """Let every call return a status from now on."""
        self._library.stub_set_dead(status)

    def fail_call(self, index: int, status: int) -> None:
        """Let one call of the log fail."""
        self._library.stub_fail_call(ctypes.c_long(index), status)

    def refuse(self, name: str, status: int = NO_MEMORY) -> None:
        """Let the next call of a name fail; 0 takes that back."""
        self._library.stub_refuse(name.encode(), status)

    def set_gpus(self, count: int) -> None:
        """Change how many GPUs there are."""
        self._library.stub_set_gpus(count)

    def set_free_bytes(self, size: int = 1 << 40) -> None:
        """Change the largest allocation that succeeds."""
        self._library.stub_set_free_bytes(ctypes.c_size_t(size))

    def capture_elsewhere(self, active: bool) -> None:
        """Pretend that another thread captures in CUDA's "global" mode."""
        self._library.stub_set_recorded_elsewhere(active)

    def holds(self, address: int, size: int, kind: str = "device memory") -> bool:
        """Return whether live memory of a kind is there."""
        arguments = ctypes.c_void_p(address), ctypes.c_size_t(size), KINDS.index(kind)
        return bool(self._library.stub_holds(*arguments))

    def capturing(self, stream: int) -> bool:
        """Return whether a graph is being captured in a stream."""
        return bool(self._library.stub_capturing(ctypes.c_void_p(stream)))

    def to_other_context(self, handle: int) -> None:
        """Move memory or a stream to another context."""
        self._library.stub_to_other_context(ctypes.c_void_p(handle))

    def to_other_gpu(self, address: int) -> None:
        """Move memory to another GPU."""
        self._library.stub_to_other_gpu(ctypes.c_void_p(address))

    def launch(self, stream: int, function: Callable[[], None]) -> int:
        """Enqueue a kernel, which is a function of Python; return the status."""
        callback = _HostFunction(lambda data: function())
        self._callbacks.append(callback)
        return int(self._library.cuLaunchHostFunc(ctypes.c_void_p(stream), callback, None))
