"""psp_rt: run pixel2style2pixel models from one engine file.

    import psp_rt
    face = psp_rt.Translator("sketch.engine").run("drawing.png")

Where to look:

    translator, style, streaming            what a program calls
    styled_batches, parts                   styles mixed in, and batches in parts
    picture_forms, images                   pictures in, pictures out
    device_array, foreign_arrays, dlpack,   the same on a GPU
    stream_forms, gpu_call
    manifest, engine_file, engine_writer,   the file, and how it is checked
    zip_layout, onnx_weights, onnx_inputs
    choice, device, openvino_library        what there is to run on, and what `auto` takes
    backends/                               the runtimes, behind one protocol
    cuda, cuda_work                         the driver calls that they make
    plans, build, tensorrt_build, ...       TensorRT plans inside the file
    cli, run_command, build_command, ...    the command: run, build, info, doctor
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
    "Manifest",
    "Member",
    "OutputError",
    "PlanError",
    "PspError",
    "StyleMix",
    "Translator",
    "write_engine",
]
