"""Load TensorRT, and tell what plans built or run on this machine depend on."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..cuda.device import load_driver
from ..engine.plans import PlanTarget
from ..errors import BackendError, PspError
from .probe import Driver, compute_capability

INSTALL_TENSORRT = "pip install 'psp_rt[tensorrt]'"


@dataclass(frozen=True, kw_only=True)
class TensorRtState:
    """What plans would run on, or the problem with it."""

    machine: PlanTarget | None = None
    problem: str = ""


def probe_tensorrt(driver: Driver, index: int) -> TensorRtState:
    """Return whether TensorRT can run plans on a GPU that the driver has found; never raises.

    Without a driver, TensorRT is not even imported: it crashes the process.
    """
    if driver.problem:
        return TensorRtState(problem=driver.problem)
    try:
        library = load_library()
        load_driver()
        return TensorRtState(machine=this_machine(library, driver, index=index))
    except PspError as error:
        return TensorRtState(problem=str(error))


def load_library() -> Any:
    """Import TensorRT.

    Raises:
        BackendError: It is not installed, or cannot be loaded.
    """
    try:
        return importlib.import_module("tensorrt")
    except (ImportError, OSError, RuntimeError) as error:  # the last two: libraries that it cannot find
        raise BackendError(
            f"TensorRT cannot be loaded ({error}); install it with: {INSTALL_TENSORRT}"
        ) from error


def this_machine(trt: Any, driver: Driver, *, index: int = 0) -> PlanTarget:
    """Return what plans that are built or run here depend on.

    Args:
        trt: The library.
        driver: The driver, which has a GPU at ``index``.
        index: The GPU's number.
    """
    return PlanTarget(
        system=f"{platform.system()} {platform.machine()}",
        library="tensorrt",
        version=trt.__version__,
        gpu=driver.gpus[index],
        compute_capability=compute_capability(index),
        driver=driver.cuda_version,
    )


def strongly_typed(trt: Any) -> bool:
    """Return whether this version takes the types of tensors from the graph; it does since 10.

    In 11 the flag that asks for it is deprecated, because there is no other way; weak typing had flags, too.
    """
    asked = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    return asked or not hasattr(trt.BuilderFlag, "OBEY_PRECISION_CONSTRAINTS")


def error_logger(trt: Any, *, listen: Callable[[str], None] | None = None) -> Any:
    """Return a logger that collects errors, so that a failure can be reported with its reasons.

    Args:
        trt: The library.
        listen: Called with every message.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()  # pybind requires its own part of the object to be initialized
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if listen is not None:
                listen(message)
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()
