"""How much of the first GPU's memory is taken. It has not run on a GPU yet.

The driver's figure is that of the whole card, so others at work on it spoil the difference. Runtimes keep
what they once took, so what is taken after a run is what the run needed at most.
"""

from __future__ import annotations

import ctypes

from psp_rt.hardware.probe import probe_driver


def used_mib() -> float | None:
    """Return the memory in use by all, or None where there is no GPU."""
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
    cuda.cuCtxPopCurrent_v2(ctypes.byref(context))  # retained on purpose: its own memory is no contender's
    return None if status else (total.value - free.value) / 2**20
