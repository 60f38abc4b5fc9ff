"""What TensorRT made of a network: the layers of a plan, by its engine inspector, and their times.

The inspector tells precision and tactic where the plan was built with detailed profiling information,
which `psp-rt build` asks for. Times come from TensorRT's profiler, one run after the other, without a CUDA
graph: together they are more than a translation takes. Written against the Python interfaces of TensorRT
8.6, 10.13 and TensorRT for RTX 1.7. It has not run on a GPU yet: the tests drive it with a stand-in.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from psp_rt import BackendError, DeviceError, EngineFile, InputError, Manifest, PlanError
from psp_rt.backends.tensorrt.plans import LoadedPlans, Network, ReadPlan
from psp_rt.cuda.device import Resources
from psp_rt.engine.plans import choose, read_plan, records
from psp_rt.engine.ports import GRAPHS
from psp_rt.hardware.probe import probe_driver
from psp_rt.hardware.tensorrt import load_library, probe_tensorrt

WARMUP = 2
TYPES = {
    "fp32": r"FP32|Float\b",
    "fp16": r"FP16|Half|Float16",
    "bf16": r"BF16|BFloat16",
    "int8": r"Int8",
    "int32": r"Int32",
    "int64": r"Int64",
    "uint8": r"UInt8",
    "bool": r"Bool",
}


@dataclass(frozen=True, kw_only=True)
class PlanLayer:
    """One layer as TensorRT runs it: often several of the graph's in one.

    Args:
        operator: TensorRT's name for its kind; empty where the plan does not say.
        precision: Of its outputs: "fp16", or "fp16+fp32" where they differ; empty as above.
        tactic: The kernel chosen; empty where there was nothing to choose.
    """

    name: str
    operator: str
    precision: str
    tactic: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan's layers, the batch that they were timed at, and each one's time where it was asked for."""

    layers: list[PlanLayer]
    batch: int
    times_ms: Mapping[str, float]


def from_engine(engine: EngineFile, *, runs: int) -> dict[str, Plan]:
    """Return the plans of an engine for this machine, by network; ``runs`` 0 times nothing.

    Raises:
        BackendError: TensorRT is missing, or refuses a plan.
        DeviceError: There is no GPU.
        PlanError: No plan fits this machine.
    """
    driver = probe_driver()
    _check_gpu(driver.problem)
    state = probe_tensorrt(driver, 0)
    if state.machine is None:
        raise BackendError(state.problem)
    target = choose(engine, state.machine)
    names = [name for name in GRAPHS if f"plans/{target}/{name}.plan" in engine.names]
    read: dict[str, ReadPlan] = {name: partial(read_plan, engine, target, name) for name in names}
    compatible = records(engine)[target].version_compatible
    return _inspect(engine.manifest, read, compatible=compatible, runs=runs)


def from_file(path: Path, manifest: Manifest, *, runs: int) -> dict[str, Plan]:
    """Return the plan in a file; errors as for `from_engine`.

    Args:
        path: encoder.plan, mapping.plan or generator.plan, as ``psp-rt build --export-plan`` names them.
        manifest: Of the engine that it was built from.
        runs: How often it runs for the times; 0 for none.
    """
    if path.stem not in GRAPHS:
        raise InputError(f"{path.name} does not say which network it is; expected {', '.join(GRAPHS)}.plan")
    if not path.is_file():
        raise InputError(f"{path} is not a file; write plans with: psp-rt build ENGINE --export-plan DIR")
    _check_gpu(probe_driver().problem)
    return _inspect(manifest, {path.stem: path.read_bytes}, compatible=True, runs=runs)


def _check_gpu(problem: str) -> None:
    """Without a driver TensorRT is not even imported: it may take the process with it."""
    if problem:
        raise DeviceError(
            f"a plan is opened by TensorRT on a GPU, and there is none here: {problem}. Run this where the "
            "plan runs; the graphs of ENGINE can be inspected anywhere, without --tensorrt and --plan"
        )


def _inspect(
    manifest: Manifest, read: Mapping[str, ReadPlan], *, compatible: bool, runs: int
) -> dict[str, Plan]:
    trt = load_library()
    plans = LoadedPlans.load(trt, 0, manifest, read, compatible=compatible)
    try:
        found = {name: _plan(plans, name, runs) for name in read}
    except BaseException:
        with suppress(BackendError):  # where the GPU has failed, so will this; the first error tells more
            plans.release()
        raise
    plans.release()
    return found


def _plan(plans: LoadedPlans, name: str, runs: int) -> Plan:
    network = plans.networks[name]
    batch = int(network.engine.get_tensor_profile_shape(network.inputs[0].name, 0)[1][0])
    with plans.device.current():
        with Resources(plans.device) as made:
            told, samples_ms = _ask(plans, made, name, batch, runs)
        made.close()
    times_ms = {layer: median(each) for layer, each in samples_ms.items()}
    return Plan(layers=read_information(told), batch=batch, times_ms=times_ms)


def _ask(
    plans: LoadedPlans, made: Resources, name: str, batch: int, runs: int
) -> tuple[str, dict[str, list[float]]]:
    """Return what the inspector tells, and the times of each layer; the context ends with this call."""
    network, size = plans.networks[name], plans.activation_bytes
    context = plans.execution_context(network, made.device_memory(size), size)
    for port in network.inputs:
        if not context.set_input_shape(port.name, (batch, *port.shape)):
            raise plans.refused(f"takes no batch of {batch} in the {name}")
    inspector = network.engine.create_engine_inspector()
    inspector.execution_context = context  # of a batch left open it tells no formats
    told = str(inspector.get_engine_information(plans.trt.LayerInformationFormat.JSON))
    return told, _timed(plans, made, network, context, batch, runs) if runs else {}


def read_information(told: str) -> list[PlanLayer]:
    """Return the layers in what the inspector tells as JSON.

    Raises:
        PlanError: It tells something else.
    """
    try:
        entries = json.loads(told)["Layers"]
        return [_layer({"Name": entry} if isinstance(entry, str) else entry) for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlanError(f"TensorRT's inspector tells no layers that are known here: {error!r}") from error


def _layer(entry: Mapping[str, Any]) -> PlanLayer:
    kinds = [_precision(output.get("Format/Datatype", "")) for output in entry.get("Outputs", [])]
    return PlanLayer(
        name=entry["Name"],
        operator=entry.get("LayerType", ""),
        precision="+".join(dict.fromkeys(filter(None, kinds))),
        tactic=str(entry.get("TacticName", "")),
    )


def _precision(told: str) -> str:
    """Return the type in a format.

    >>> _precision("Channel major FP16 format where channel % 8 == 0")
    'fp16'
    """
    return next(
        (name for name, words in TYPES.items() if re.search(rf"\b(?:{words})", told, re.IGNORECASE)), told
    )


def _timed(
    plans: LoadedPlans, made: Resources, network: Network, context: Any, batch: int, runs: int
) -> dict[str, list[float]]:
    """Run a network on zeros, without a CUDA graph, which a profiler forbids."""
    stream, profiler = made.stream(), _profiler(plans.trt)
    for port in (*network.inputs, network.output):
        needed = batch * prod(port.shape) * np.dtype(port.dtype).itemsize
        address = made.device_memory(needed)
        plans.device.call("cuMemsetD8Async", address, 0, needed, stream)
        context.set_tensor_address(port.name, address)
    for run in range(WARMUP + runs):
        if run == WARMUP:
            context.profiler = profiler
        if not context.execute_async_v3(int(stream)):
            raise plans.refused(f"refused to run the {network.name}")
        plans.device.call("cuStreamSynchronize", stream)
    samples_ms: dict[str, list[float]] = profiler.samples_ms
    return samples_ms


def _profiler(trt: Any) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()  # pybind refuses an object whose own part was not made
            self.samples_ms: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.samples_ms.setdefault(layer_name, []).append(ms)

    return Profiler()
