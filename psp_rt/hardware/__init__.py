"""This machine: its devices and runtimes, and which of them an engine uses (`psp_rt.hardware.choose`)."""

from .choose import Choice, Hardware, find_plan
from .openvino import openvino_core, probe_openvino
from .probe import default_threads, probe_driver

__all__ = [
    "Choice",
    "Hardware",
    "default_threads",
    "find_plan",
    "openvino_core",
    "probe_driver",
    "probe_openvino",
]
