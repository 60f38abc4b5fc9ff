"""psp_rt: run pixel2style2pixel models from one engine file.

    import psp_rt
    face = psp_rt.Translator("sketch.engine").run("drawing.png")

Where to look, from the bottom up:

    engine/       the file: its manifest, how it is read safely, which graphs it may contain
    images/       pictures in, pictures out
    hardware/     what this machine has, and which backend "auto" uses
    cuda/         device, streams, and the arrays of other libraries
    backends/     ONNX Runtime, OpenVINO and TensorRT behind one interface
    faces/        find, align and put back faces; drawings.py cleans drawings, pencil.py makes them
    build/        TensorRT plans for the GPU of this machine
    translator    what a program calls; style, batching and streaming are its parts
    cli/          the psp-rt command
"""

from .cuda.arrays import DeviceArray
from .engine.manifest import ImageSize, InputSpec, Manifest, Member
from .engine.reader import EngineFile
from .engine.writer import write_engine
from .errors import (
    BackendError,
    DeviceError,
    FormatError,
    InputError,
    InputWarning,
    OutOfMemoryError,
    OutputError,
    PlanError,
    PspError,
)
from .style import StyleMix
from .translator import Translator

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "DeviceArray",
    "DeviceError",
    "EngineFile",
    "FormatError",
    "ImageSize",
    "InputError",
    "InputSpec",
    "InputWarning",
    "Manifest",
    "Member",
    "OutOfMemoryError",
    "OutputError",
    "PlanError",
    "PspError",
    "StyleMix",
    "Translator",
    "write_engine",
]


def __dir__() -> list[str]:
    return [*__all__, "drawings", "faces"]
