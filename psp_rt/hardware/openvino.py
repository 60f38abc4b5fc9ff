"""Load OpenVINO, and say what it can do here."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

INSTALL_OPENVINO = "pip install 'psp_rt[openvino]'"
MEND_OPENVINO = "pip install --force-reinstall 'psp_rt[openvino]'"


@dataclass(frozen=True, kw_only=True)
class OpenVinoState:
    """What OpenVINO says of itself: its version and what its CPU plugin computes in, or the problem."""

    version: str = ""
    capabilities: tuple[str, ...] = ()
    problem: str = ""


def probe_openvino() -> OpenVinoState:
    """Ask OpenVINO what it can do on this processor; never raises."""
    if importlib.util.find_spec("openvino") is None:
        return OpenVinoState(problem=f"OpenVINO is not installed; install it with: {INSTALL_OPENVINO}")
    try:
        version = load_openvino().__version__.partition("-")[0]
        capabilities = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except Exception as error:  # a library that does not fit the system fails in its own way
        return OpenVinoState(
            problem=f"OpenVINO is installed but cannot be loaded ({error}); mend it with: {MEND_OPENVINO}"
        )
    return OpenVinoState(version=version, capabilities=tuple(capabilities))


@lru_cache(maxsize=1)
def load_openvino() -> Any:
    """Import OpenVINO, without letting it tell its makers so.

    Its package sends a message over the network at every import, unless ``openvino_telemetry`` is
    missing: then it takes its own empty stand-in. Where the program has imported OpenVINO before, it
    has made its own choice.
    """
    hidden = "openvino_telemetry" not in sys.modules
    if hidden:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # makes its import fail
    try:
        import openvino
    finally:
        if hidden:
            sys.modules.pop("openvino_telemetry", None)  # another thread may have been here
    return openvino


@lru_cache(maxsize=1)
def openvino_core() -> Any:
    """Return the one Core of this process: each would load the CPU plugin again."""
    return load_openvino().Core()
