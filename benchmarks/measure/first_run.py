"""The first moments of a contender's process: ``python -m benchmarks.measure.first_run SPECIFICATION``.

The specification and the result are JSON. For psp_rt, nothing is imported that a user of psp_rt would not
import. Weights that are drawn instead of read from a file have no opening time.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Opened = tuple[Callable[[], object], bool, dict[str, float]]  # translates, runs on a GPU, times until then


def main(specification: str) -> None:
    """Open a contender, translate the pictures twice and print the times and the memory.

    The specification of psp_rt has ``engine``, ``pictures``, which are one batch, the ``translator``'s
    settings, and how many ``clones`` translate at once. That of PyTorch has the name of the ``contender``, an
    ``architecture`` or else ``engine`` and ``checkpoint``, the ``threads``, and the size of the ``batch``.
    """
    asked: dict[str, Any] = json.loads(specification)
    translate, on_gpu, times = _open_psp_rt(asked) if "translator" in asked else _open_pytorch(asked)
    opened_mib, runs = peak_mib(), []
    for _ in range(2):
        started = time.perf_counter()
        translate()
        runs.append(time.perf_counter() - started)
    used_before, used = times.pop("used_mib", None), gpu_memory_mib() if on_gpu else None
    found = {
        "open_s": None,
        **times,
        "first_run_s": runs[0],
        "second_run_s": runs[1],
        "peak_open_mib": opened_mib,
        "peak_mib": peak_mib(),
        "device_mib": None if used is None or used_before is None else used - used_before,
    }
    print(json.dumps(found))


def _open_psp_rt(asked: dict[str, Any]) -> Opened:
    times, started = {}, time.perf_counter()
    import psp_rt

    times["import_s"] = time.perf_counter() - started
    on_gpu = asked["translator"]["device"] != "cpu"
    if on_gpu and (used := gpu_memory_mib()) is not None:
        times["used_mib"] = used
    started = time.perf_counter()
    first = psp_rt.Translator(asked["engine"], **asked["translator"])
    times["open_s"] = time.perf_counter() - started
    translators = [first, *(first.clone() for _ in range(asked["clones"] - 1))]
    pool = ThreadPoolExecutor(len(translators))

    def translate() -> None:
        list(pool.map(lambda translator: translator.run(asked["pictures"]), translators))

    return translate, on_gpu, times


def _open_pytorch(asked: dict[str, Any]) -> Opened:
    from benchmarks.contenders.all import ENTRIES
    from benchmarks.workloads.models import named
    from benchmarks.workloads.workload import drawn_workload, given_workload

    (entry,) = (entry for entry in ENTRIES if entry.name == asked["contender"])
    on_gpu, times = entry.device != "cpu", {}
    if on_gpu and (used := gpu_memory_mib()) is not None:
        times["used_mib"] = used
    batch, threads = asked["batch"], asked["threads"]
    started = time.perf_counter()
    if asked["architecture"]:
        architecture = named(asked["architecture"])
        workload = drawn_workload(architecture, batch=batch, threads=threads, report=lambda step: None)
    else:
        engine, checkpoint = Path(asked["engine"]), Path(asked["checkpoint"])
        workload = given_workload(engine, checkpoint, batch=batch, threads=threads)
    contender = entry.open(workload)
    if not asked["architecture"]:
        times["open_s"] = time.perf_counter() - started
    return lambda: contender.translate(workload.pictures), on_gpu, times


def peak_mib() -> float:
    """Return the peak memory of this process.

    On Linux, getrusage's figure is inherited from the parent, which here is many times as large. VmHWM
    starts anew with the process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        if "VmHWM" in lines:
            return int(lines["VmHWM"].split()[0]) / 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def gpu_memory_mib() -> float | None:
    """Return the used memory of the first GPU, or None if there is none.

    The driver's figure is that of the whole card, so other processes on it spoil the difference. Runtimes
    keep the memory that they took once, so the memory after a run is the most that the run needed.
    """
    from psp_rt.hardware import probe_driver

    if probe_driver().problem:
        return None
    cuda, device, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(0), ctypes.c_void_p()
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    status = cuda.cuDeviceGet(ctypes.byref(device), 0)
    status = status or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
    status = status or cuda.cuCtxPushCurrent_v2(context)
    if status:
        return None
    status = cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    # The context stays retained: its own memory must not count as the contender's.
    cuda.cuCtxPopCurrent_v2(ctypes.byref(context))
    return None if status else (total.value - free.value) / 2**20


if __name__ == "__main__":
    main(sys.argv[1])
