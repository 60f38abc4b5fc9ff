"""The errors of psp_rt. Each message says what is wrong, what was expected, and what to type."""


class PspError(Exception):
    """The root of every error that psp_rt raises on purpose."""


class FormatError(PspError):
    """An engine file or its manifest is damaged, hostile, or from another version."""


class InputError(PspError, ValueError):
    """A value handed to a call is not one that the model can take."""


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


class DeviceError(PspError):
    """A device that was asked for cannot be had here."""


class OutputError(PspError):
    """A result cannot be written where it should go."""


class BackendError(PspError):
    """The library that runs the graphs failed while running one."""


class PlanError(PspError):
    """A TensorRT plan does not fit this machine, or the engine that it is in."""
