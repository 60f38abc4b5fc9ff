"""What this machine has to run models on.

The NVIDIA driver is asked first, through its own library: without one, creating a session or a
TensorRT runtime on a GPU fails late, in silence, or takes the process with it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from ..errors import DeviceError, InputError

INSTALL_CPU = "pip install 'psp_rt[cpu]'"
INSTALL_CUDA = "pip uninstall -y onnxruntime && pip install --force-reinstall 'psp_rt[cuda]'"
CUDA_PROVIDER = "CUDAExecutionProvider"
MOST_THREADS = 1024  # a runtime starts them all at once, and hangs at a million


@dataclass(frozen=True, kw_only=True)
class Driver:
    """What NVIDIA's driver says: its GPUs, or the problem that hides them."""

    gpus: tuple[str, ...] = ()
    cuda_version: str = ""
    problem: str = ""


def probe_driver() -> Driver:
    """Ask NVIDIA's driver which GPUs there are; never raises."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return Driver(problem="no NVIDIA driver found")
    status = cuda.cuInit(0)
    count, version = ctypes.c_int(0), ctypes.c_int(0)
    if status == 0:
        status = cuda.cuDeviceGetCount(ctypes.byref(count))
    if status != 0:
        return Driver(problem=f"the NVIDIA driver reports error {status}; see nvidia-smi")
    if count.value == 0:
        return Driver(problem="the NVIDIA driver finds no GPU")
    cuda.cuDriverGetVersion(ctypes.byref(version))
    major, minor = version.value // 1000, version.value % 1000 // 10
    return Driver(
        gpus=tuple(_gpu_name(cuda, index) for index in range(count.value)), cuda_version=f"{major}.{minor}"
    )


def _gpu_name(cuda: ctypes.CDLL, index: int) -> str:
    handle, name = ctypes.c_int(0), ctypes.create_string_buffer(128)
    if cuda.cuDeviceGet(ctypes.byref(handle), index) or cuda.cuDeviceGetName(name, len(name), handle):
        return "unknown GPU"
    return name.value.decode(errors="replace")


def compute_capability(index: int = 0) -> str:
    """Return a GPU's compute capability, as "9.0"; the driver must have been probed."""
    cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    device, parts = ctypes.c_int(0), []
    status = cuda.cuDeviceGet(ctypes.byref(device), index)
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR, cuda.h
        value = ctypes.c_int(0)
        status = status or cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        parts.append(str(value.value))
    if status:
        raise DeviceError(f"the NVIDIA driver reports error {status} for GPU {index}; see nvidia-smi")
    return ".".join(parts)


def onnxruntime_providers() -> tuple[str, ...] | None:
    """Return what ONNX Runtime can run on, or None where it is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    if not hasattr(onnxruntime, "get_available_providers"):  # what is left after removing one of two packages
        return None
    return tuple(onnxruntime.get_available_providers())


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads that is none, or that a runtime would hang on."""
    if threads is not None and (not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS):
        raise InputError(
            f"threads is {threads!r}; expected 1 to {MOST_THREADS}, or None for one on each physical core"
        )


def default_threads() -> int:
    """Return the number of physical cores that this process may use; 0 where that is unknown.

    A second thread on a core adds nothing to convolutions, which keep its arithmetic units busy alone.
    """
    if not hasattr(os, "sched_getaffinity"):
        return 0  # the runtimes then count the physical cores themselves
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text())
        except OSError:
            cores.add(str(cpu))
    return len(cores)
