"""The engine with TensorRT plans for this machine. Building has not run on a GPU yet."""

from pathlib import Path
from typing import Literal, cast

from benchmarks.measure.workload import Workload, cached_engine
from export.engine import Settings
from psp_rt import EngineFile
from psp_rt.build.build import BuildRequest, build
from psp_rt.build.builder import BuildOptions
from psp_rt.hardware import Hardware
from psp_rt.hardware.choose import find_plan
from psp_rt.hardware.probe import probe_driver


def engine_with_plans(workload: Workload, precision: str) -> Path:
    """Return a user's engine as it is, and a drawn one with plans, built now unless they are there.

    A drawn engine is copied for it, one for each precision: building adds to a file. What the plans
    compute is compared by the benchmark, so not here.

    Raises:
        DeviceError: There is no GPU to build on.
        BackendError: TensorRT is missing or gives up.
    """
    if workload.architecture is None or probe_driver().problem:
        return workload.engine  # opening it says what is missing
    engine = cached_engine(
        workload.architecture,
        lambda step: None,
        variant=f"-tensorrt-{precision}",
        settings=Settings(precision=cast(Literal["fp32", "fp16"], precision), pictures=workload.pictures),
    )
    with EngineFile.open(engine) as file:
        fits = find_plan(file, Hardware(), 0, precision).target
    if not fits:
        batch = max(4, len(workload.pictures))
        build(BuildRequest(engine=engine, options=BuildOptions(batches=(1, 1, batch))))
    return engine
