"""The provenance of results: machine, versions, commit, command."""

import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psp_rt
from benchmarks import ROOT
from psp_rt.cli.info import installed_packages
from psp_rt.hardware import probe_driver

PACKAGES = ("numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "torch", "onnx", "openvino", "tensorrt")


def collect(
    arguments: Sequence[str], *, threads: int, program: str = "benchmarks/latency.py"
) -> dict[str, str]:
    """Return what is needed to judge or repeat a run."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shown_command(arguments, program=program),
        "commit": _commit(),
        "cpu": cpu_model(),
        "cpus": str(os.cpu_count()),
        **gpus(),
        "threads": str(threads),
        "memory_gib": _memory_gib(),
        "load": _load(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "psp_rt": psp_rt.__version__,
        **installed_packages(PACKAGES),
        **{name: os.environ[name] for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS") if name in os.environ},
    }


def shown_command(arguments: Sequence[str], *, program: str = "benchmarks/latency.py") -> str:
    """Return the command line without the folders of this machine."""
    shown = [
        Path(argument).name if Path(argument).is_absolute() or argument.startswith("..") else argument
        for argument in arguments
    ]
    return " ".join(["python", program, *shown])


def cpu_model() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def gpus() -> dict[str, str]:
    """Return the GPUs' names and the CUDA version of their driver, if there are any."""
    driver = probe_driver()
    return {"gpu": ", ".join(driver.gpus), "cuda_driver": driver.cuda_version} if driver.gpus else {}


def _commit() -> str:
    """Return the commit, marked if files differ from it."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def _load() -> str:
    """Return the load before the run; other processes make every number larger."""
    return f"{os.getloadavg()[0]:.1f}" if sys.platform != "win32" else "unknown"


def _memory_gib() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f}"
    except (AttributeError, ValueError, OSError):
        return "unknown"
