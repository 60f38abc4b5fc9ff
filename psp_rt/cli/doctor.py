"""What this machine has, what ``device="auto"`` takes here, and what to type to mend it."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from .. import __version__
from ..cuda.device import INSTALL_BINDINGS
from ..engine.plans import obstacle, records
from ..engine.reader import EngineFile
from ..hardware.choose import Hardware
from ..hardware.openvino import INSTALL_OPENVINO, OpenVinoState
from ..hardware.probe import CUDA_PROVIDER, INSTALL_CUDA, default_threads
from ..translator import Translator
from .info import runs_on

PACKAGES = ("numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "cuda-bindings")


def report(engine: Path | None) -> Iterator[str]:
    """Yield the report's lines."""
    machine, installed = Hardware(), installed_packages()
    yield _line("python", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    yield _line("psp_rt", __version__)
    for name in PACKAGES:
        yield _line(name, installed.get(name, "not installed"))
    yield _line("providers", ", ".join(machine.providers) if machine.providers else "none")
    yield _line("bf16", _bf16(machine.openvino))
    yield _line("driver", machine.driver.problem or f"CUDA {machine.driver.cuda_version}")
    for index, gpu in enumerate(machine.driver.gpus):
        yield _line(f"cuda:{index}", gpu)
    yield _line("threads", str(default_threads() or "all cores"))
    yield _line("auto takes", runs_on(machine))
    for fault in faults(machine, installed):
        yield _line("to mend", fault)
    if engine is not None:
        for line in _plans(engine, machine):
            yield _line("plan", line)
        yield _line("engine", _trial(engine))


def installed_packages(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def faults(machine: Hardware, installed: dict[str, str]) -> list[str]:
    """Return what is wrong or missing, each with the command that mends it."""
    found = []
    if machine.providers is None and machine.driver.gpus:
        found.append(f"there is a GPU, but ONNX Runtime is not installed: {INSTALL_CUDA}")
    elif {"onnxruntime", "onnxruntime-gpu"} <= installed.keys():
        found.append(
            f"onnxruntime and onnxruntime-gpu are both installed and hide each other: {INSTALL_CUDA}"
        )
    elif machine.driver.gpus and CUDA_PROVIDER not in (machine.providers or ()):
        found.append(f"there is a GPU, but ONNX Runtime has no CUDA provider: {INSTALL_CUDA}")
    if machine.driver.gpus and "tensorrt" in installed and "cuda-bindings" not in installed:
        found.append(f"TensorRT runs plans only with cuda-bindings: {INSTALL_BINDINGS}")
    if machine.openvino.problem and machine.openvino_is_faster:
        found.append(f"{machine.openvino.problem}: models on the CPU would run faster")
    return found


def _bf16(openvino: OpenVinoState) -> str:
    if openvino.problem:
        return f"needs OpenVINO: {INSTALL_OPENVINO}"
    return "yes, precision='bf16'" if "BF16" in openvino.capabilities else "not in this processor"


def _plans(engine: Path, machine: Hardware) -> Iterator[str]:
    """Say of each plan of an engine whether the first GPU can run it."""
    with EngineFile.open(engine, needs_graphs=False) as file:
        for target, record in records(file).items():
            state = machine.tensorrt(0)
            problem = state.problem if state.machine is None else obstacle(record, state.machine, file)
            yield f"{target}: {problem or 'runs here'}"


def _trial(engine: Path) -> str:
    """Load an engine and make one picture with it."""
    start = time.perf_counter()
    with Translator(engine) as translator:
        translator.generate(translator.sample(0))
        seconds = time.perf_counter() - start
        where = f"{translator.device} with {translator.backend}, {translator.precision}"
        return f"{engine} runs on {where}: loaded and first picture made in {seconds:.2f} s"


def _line(name: str, value: str) -> str:
    return f"{name:16} {value}"
