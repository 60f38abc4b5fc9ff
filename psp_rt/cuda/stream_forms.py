"""The forms in which callers hand over a CUDA stream."""

from __future__ import annotations

from typing import Any

from ..errors import InputError

LEGACY_DEFAULT = 1  # CU_STREAM_LEGACY, cuda.h: the default stream of code that asks for no other
PER_THREAD_DEFAULT = 2  # CU_STREAM_PER_THREAD: of code that is built for default streams of each thread


def stream_number(stream: Any) -> int:
    """Return the handle of a stream; 1 is the legacy default stream, 2 the default stream of each thread.

    Args:
        stream: The handle as an int; or an object with ``__cuda_stream__`` (cuda.core and others),
            ``cuda_stream`` (PyTorch), ``ptr`` (CuPy) or ``handle`` (pycuda, Numba).

    Raises:
        InputError: It is none of these.
    """
    number = _number(stream)
    if number is None or number < 0:
        raise InputError(
            f"stream is {stream!r:.80}; expected the handle of a CUDA stream as an int, or a stream of "
            "PyTorch, CuPy, pycuda or cuda.core"
        )
    return number or LEGACY_DEFAULT


def _number(stream: Any) -> int | None:
    if isinstance(stream, bool):
        return None
    if isinstance(stream, int):
        return stream
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        version_and_handle = protocol() if callable(protocol) else protocol  # a property in early drafts
        return int(version_and_handle[1])
    for name in ("cuda_stream", "ptr", "handle"):
        handle: Any = getattr(stream, name, None)
        if hasattr(handle, "value"):  # a ctypes pointer, Numba's; None is that of the default stream
            handle = handle.value or 0
        if handle is not None and not callable(handle):
            return int(handle)
    return None
