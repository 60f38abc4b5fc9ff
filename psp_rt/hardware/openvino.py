"""Load OpenVINO, and tell what it can do on this processor."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

INSTALL_OPENVINO = "pip install 'psp_rt[openvino]'"
REINSTALL_OPENVINO = "pip install --force-reinstall 'psp_rt[openvino]'"

_made_in: list[int] = []  # the process that has the Core; one that was forked off hangs in it


@dataclass(frozen=True, kw_only=True)
class OpenVinoState:
    """OpenVINO's version and the types that its CPU plugin computes in, or the problem with it."""

    version: str = ""
    capabilities: tuple[str, ...] = ()
    problem: str = ""


def probe_openvino() -> OpenVinoState:
    """Return what OpenVINO can do on this processor; never raises."""
    if importlib.util.find_spec("openvino") is None:
        return OpenVinoState(problem=f"OpenVINO is not installed; install it with: {INSTALL_OPENVINO}")
    if _made_in and os.getpid() not in _made_in:
        return OpenVinoState(
            problem="OpenVINO was used before this process was forked off, and its threads are in the other "
            "process; use backend='onnxruntime' here, or multiprocessing's start method 'spawn'"
        )
    try:
        version = load_openvino().__version__.partition("-")[0]
        capabilities = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except Exception as error:  # a library that does not match the system fails in its own way
        return OpenVinoState(
            problem=f"OpenVINO is installed but cannot be loaded ({error}); fix it with: {REINSTALL_OPENVINO}"
        )
    return OpenVinoState(version=version, capabilities=tuple(capabilities))


@lru_cache(maxsize=1)
def load_openvino() -> Any:
    """Import OpenVINO with its telemetry disabled.

    Its package sends a message over the network at every import, unless ``openvino_telemetry`` is missing. If
    the program has imported that package before, it has made its own choice.
    """
    hidden = "openvino_telemetry" not in sys.modules
    if hidden:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # makes its import fail
    try:
        import openvino
    finally:
        if hidden:
            sys.modules.pop("openvino_telemetry", None)  # another thread may have removed it
    return openvino


@lru_cache(maxsize=1)
def openvino_core() -> Any:
    """Return the only Core of this process, since each one loads the CPU plugin again."""
    _made_in.append(os.getpid())
    return load_openvino().Core()
