"""psp_rt: run pixel2style2pixel models from one engine file.

import psp_rt
face = psp_rt.Translator("sketch.engine").run(img)
"""

from .engine_file import EngineFile
from .engine_writer import write_engine
from .errors import (
    BackendError,
    DeviceError,
    FormatError,
    InputError,
    OutputError,
    PlanError,
    PspError,
)
from .manifest import ImageSize, InputSpec, Manifest, Member
from .style import StyleMix
from .translator import Translator

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "DeviceError",
    "EngineFile",
    "FormatError",
    "ImageSize",
    "InputError",
    "InputSpec",
    "Manifest",
    "Member",
    "OutputError",
    "PlanError",
    "PspError",
    "StyleMix",
    "Translator",
    "write_engine",
]
