"""What this machine has, what ``device="auto"`` takes here, and what to type to mend it."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from . import __version__
from .device import (
    CUDA_PROVIDER,
    INSTALL_CPU,
    INSTALL_CUDA,
    Driver,
    choose_device,
    default_threads,
    onnxruntime_providers,
    probe_driver,
)
from .errors import PspError
from .translator import Translator

PACKAGES = ("numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "tensorrt")


def report(engine: Path | None) -> Iterator[str]:
    """Yield the report's lines."""
    driver, providers = probe_driver(), onnxruntime_providers()
    installed = installed_packages()
    yield _line("python", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    yield _line("psp_rt", __version__)
    for name in PACKAGES:
        yield _line(name, installed.get(name, "not installed"))
    yield _line("providers", ", ".join(providers) if providers else "none")
    yield _line("driver", driver.problem or f"CUDA {driver.cuda_version}")
    for index, gpu in enumerate(driver.gpus):
        yield _line(f"cuda:{index}", gpu)
    yield _line("threads", str(default_threads() or "all cores"))
    yield _line("auto takes", _automatic(driver, providers))
    for fault in faults(driver, providers, installed):
        yield _line("to mend", fault)
    if engine is not None:
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


def faults(driver: Driver, providers: tuple[str, ...] | None, installed: dict[str, str]) -> list[str]:
    """Return what is wrong, each with the command that mends it."""
    if providers is None:
        return [f"ONNX Runtime is not installed: {INSTALL_CUDA if driver.gpus else INSTALL_CPU}"]
    if {"onnxruntime", "onnxruntime-gpu"} <= installed.keys():
        return [f"onnxruntime and onnxruntime-gpu are both installed and hide each other: {INSTALL_CUDA}"]
    if driver.gpus and CUDA_PROVIDER not in providers:
        return [f"there is a GPU, but ONNX Runtime has no CUDA provider: {INSTALL_CUDA}"]
    return []


def _automatic(driver: Driver, providers: tuple[str, ...] | None) -> str:
    try:
        choice = choose_device("auto", driver, providers)
    except PspError as error:
        return f"nothing: {error}"
    return f"{choice.device} with ONNX Runtime: {choice.reason}"


def _trial(engine: Path) -> str:
    """Load an engine and make one picture with it."""
    start = time.perf_counter()
    with Translator(engine) as translator:
        translator.generate(translator.sample(0))
        seconds = time.perf_counter() - start
        return f"{engine} runs on {translator.device}: loaded and first picture made in {seconds:.2f} s"


def _line(name: str, value: str) -> str:
    return f"{name:16} {value}"
