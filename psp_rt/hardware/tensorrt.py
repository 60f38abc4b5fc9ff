"""Say whether TensorRT can run plans here, and what plans depend on.

Nothing of this has run on a GPU yet.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

from ..build.builder import load_library
from ..cuda.device import load_driver
from ..engine.plans import PlanTarget
from ..errors import PspError
from .probe import Driver, compute_capability


@dataclass(frozen=True, kw_only=True)
class TensorRtState:
    """What plans would run on, or what is wrong with it."""

    machine: PlanTarget | None = None
    problem: str = ""


def probe_tensorrt(driver: Driver, index: int) -> TensorRtState:
    """Ask whether TensorRT can run plans on a GPU that the driver has; never raises.

    Without a driver TensorRT is not even imported: it may take the process with it.
    """
    if driver.problem:
        return TensorRtState(problem=driver.problem)
    try:
        library = load_library(rtx=False)
        load_driver()
        return TensorRtState(machine=this_machine(library, driver, index=index))
    except PspError as error:
        return TensorRtState(problem=str(error))


def this_machine(
    trt: Any, driver: Driver, compute_capabilities: tuple[str, ...] = (), *, index: int = 0
) -> PlanTarget:
    """Return what plans built or run here depend on.

    Args:
        trt: The library.
        driver: With the GPU at ``index``, unless the plans are for elsewhere.
        compute_capabilities: Those of elsewhere; empty for the GPU that is here.
        index: The GPU's number.
    """
    elsewhere = bool(compute_capabilities)
    return PlanTarget(
        system=f"{platform.system()} {platform.machine()}",
        library="tensorrt_rtx" if "rtx" in trt.__name__ else "tensorrt",
        version=trt.__version__,
        gpu="" if elsewhere else driver.gpus[index],
        compute_capability="+".join(compute_capabilities) if elsewhere else compute_capability(index),
        driver=driver.cuda_version,
    )
