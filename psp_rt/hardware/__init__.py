"""This machine: its devices and runtimes, and which of them an engine uses (`psp_rt.hardware.choose`)."""

from .choose import Choice, Hardware
from .probe import default_threads

__all__ = ["Choice", "Hardware", "default_threads"]
