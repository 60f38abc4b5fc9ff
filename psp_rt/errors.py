"""The errors of psp_rt. Each message says what is wrong, what was expected, and what to type."""


class PspError(Exception):
    """The root of every error that psp_rt raises on purpose."""


class FormatError(PspError):
    """An engine file or its manifest is damaged, hostile, or from another version."""


class InputError(PspError, ValueError):
    """A value handed to a call is not one that the model can take."""


class DeviceError(PspError):
    """A device that was asked for cannot be had here."""


class OutputError(PspError):
    """A result cannot be written where it should go."""


class BackendError(PspError):
    """The library that runs the graphs failed while running one."""


class PlanError(PspError):
    """A TensorRT plan does not fit this machine, or the engine that it is in."""
