"""Find out what this machine can run models on.

The NVIDIA driver is asked first, through its own library: without a driver, creating a session on a GPU fails
late or silently, and TensorRT crashes the process.
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
DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
IS_STUB = 34  # CUDA_ERROR_STUB_LIBRARY, cuda.h
MAX_THREADS = 1024  # a runtime starts them all at once, and hangs at a million


@dataclass(frozen=True, kw_only=True)
class Driver:
    """NVIDIA's driver: its GPUs, or why there are none."""

    gpus: tuple[str, ...] = ()
    cuda_version: str = ""
    problem: str = ""


def probe_driver() -> Driver:
    """Ask NVIDIA's driver which GPUs there are; never raises."""
    try:
        cuda = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return Driver(problem="no NVIDIA driver found")
    status = cuda.cuInit(0)
    if status == IS_STUB:
        return Driver(problem="no NVIDIA driver found (libcuda is the stub library of the CUDA toolkit)")
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
    """Return a GPU's compute capability, such as "9.0"; `probe_driver` must have found it."""
    cuda = ctypes.CDLL(DRIVER_LIBRARY)
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
    """Return the providers of ONNX Runtime, or None if it is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    if not hasattr(
        onnxruntime, "get_available_providers"
    ):  # an empty package, left by uninstalling one of two
        return None
    return tuple(onnxruntime.get_available_providers())


def check_threads(threads: int | None) -> None:
    """Check that a number of threads is one that the runtimes can start."""
    if threads is not None and (not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS):
        raise InputError(
            f"threads is {threads!r}; expected 1 to {MAX_THREADS}, or None for one on each physical core"
        )


def default_threads() -> int:
    """Return the number of physical cores that this process may use; 0 if that is unknown.

    A second thread on a core does not speed up convolutions: one keeps its arithmetic units busy. A container
    with a quota of 1.5 CPUs gets 1: threads beyond a quota are stopped in turn, and all wait for each other.
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
    quota = cpu_quota()
    return len(cores) if quota is None else max(1, min(len(cores), int(quota)))


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return how many CPUs' time the control groups of this process allow, None for no limit.

    Version 2 has "QUOTA PERIOD" or "max PERIOD" in ``cpu.max`` of the group and of those above it; version 1
    has two files, and -1 for no limit. Inside a container the mounted root is often the group itself.
    """
    try:
        lines = [line.split(":", 2) for line in groups.read_text().splitlines()]
    except OSError:
        return None
    quotas = []
    for _, controllers, own in (line for line in lines if len(line) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / controllers if controllers else root
        quotas += _quotas(top / own.lstrip("/"), top)
    return min(quotas, default=None)


def _quotas(folder: Path, top: Path) -> list[float]:
    """Return the limits of a group and of those above it."""
    found = []
    for group in (folder, *folder.parents):
        of_version_1 = f"{_read(group / 'cpu.cfs_quota_us')} {_read(group / 'cpu.cfs_period_us')}"
        text = _read(group / "cpu.max") or of_version_1
        quota, _, period = text.partition(" ")
        if quota.isdecimal() and period.strip().isdecimal() and int(period) > 0:
            found.append(int(quota) / int(period))
        if group == top:
            break
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
