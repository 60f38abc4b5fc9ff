"""The errors of psp_rt. Each message says what is wrong, what was expected, and what to type."""

from __future__ import annotations

import re

_NO_MEMORY = ("bad_alloc", "bad allocation", "Failed to allocate memory", "Cannot allocate memory")


class PspError(Exception):
    """The root of every error that psp_rt raises on purpose."""


class FormatError(PspError):
    """An engine file or its manifest is damaged, hostile, or from another version."""


class InputError(PspError, ValueError):
    """A value handed to a call is not one that the model can take."""


class PixelLimitError(InputError):
    """A picture has more pixels than are decoded, which bounds the memory."""


class InputWarning(UserWarning):
    """A result may be poor because of what was passed; not an error, unless a filter makes it one.

    Args:
        kind: "squeezed" (in one direction), "upscaled", or "strange": unlike what the model was made for.
        value: What was found: the share that is lost, how many times it is enlarged, the distance.
        limit: The largest value without a warning.
    """

    def __init__(self, message: str, *, kind: str, value: float, limit: float) -> None:
        super().__init__(message)
        self.kind, self.value, self.limit = kind, value, limit


class OutOfMemoryError(PspError):
    """There is too little memory, on this machine or for this process."""


def out_of_memory(error: Exception, doing: str, advice: str) -> OutOfMemoryError | None:
    """Return the error for a failure for lack of memory, None for any other failure.

    The runtimes raise their own classes, so they are told by what they say.

    Args:
        error: What was raised.
        doing: What was going on: "running the generator".
        advice: What to do.
    """
    if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in _NO_MEMORY):
        return None
    in_bytes = re.search(r"of size (\d+)", str(error))  # ONNX Runtime
    found = re.search(r"[\d.]+ [KMGT]iB", str(error))  # NumPy
    size = f"{int(in_bytes[1]) / 2**20:,.0f} MiB" if in_bytes else found[0] if found else ""
    needed = f" (it asked for {size} more)" if size else ""
    return OutOfMemoryError(f"there is too little memory for {doing}{needed}: {advice}")


class DeviceError(PspError):
    """A device that was asked for cannot be had here."""


class OutputError(PspError):
    """A result cannot be written where it should go."""


class BackendError(PspError):
    """The library that runs the graphs failed while running one."""


class PlanError(PspError):
    """A TensorRT plan does not fit this machine, or the engine that it is in."""
