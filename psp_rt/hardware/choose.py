"""Select the device, backend and precision for an engine.

With "auto" the first of these that is available is used:

    1. TensorRT, if the engine contains a plan for this GPU
    2. ONNX Runtime on CUDA
    3. OpenVINO on the CPU (x86-64 only; we have no measurements on other processors)
    4. ONNX Runtime on the CPU

An explicit request is honored or raises `DeviceError`. There is no silent fallback.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ..engine.plans import choose as choose_target
from ..engine.plans import records
from ..engine.reader import EngineFile
from ..errors import DeviceError, PlanError
from .openvino import OpenVinoState, probe_openvino
from .probe import CUDA_PROVIDER, INSTALL_CPU, INSTALL_CUDA, Driver, onnxruntime_providers, probe_driver
from .tensorrt import TensorRtState, probe_tensorrt

Device = Literal[
    "auto", "cpu", "cuda", "cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:4", "cuda:5", "cuda:6", "cuda:7"
]
BackendName = Literal["auto", "onnxruntime", "openvino", "tensorrt"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
BACKENDS = ("auto", "onnxruntime", "openvino", "tensorrt")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
BACKENDS_OF = {"bf16": ("openvino",), "fp16": ("tensorrt",), "fp32": BACKENDS}
CPU_SETTINGS, GPU_SETTINGS = ("openvino", "bf16"), ("tensorrt", "fp16")


class Hardware:
    """This machine. Facts are looked up lazily, because some lookups import a large library."""

    def __init__(self) -> None:
        self._tensorrt: dict[int, TensorRtState] = {}

    @cached_property
    def driver(self) -> Driver:
        """NVIDIA's driver."""
        return probe_driver()

    @cached_property
    def providers(self) -> tuple[str, ...] | None:
        """The providers of ONNX Runtime; None if it is not installed."""
        return onnxruntime_providers()

    @cached_property
    def openvino(self) -> OpenVinoState:
        """OpenVINO, or the problem with it."""
        return probe_openvino()

    @cached_property
    def processor(self) -> str:
        """The processor's architecture, for example x86_64."""
        return platform.machine()

    @property
    def openvino_is_faster(self) -> bool:
        """Whether we measured that OpenVINO is the faster runtime on such processors."""
        return self.processor in ("x86_64", "AMD64")

    def tensorrt(self, index: int) -> TensorRtState:
        """Return TensorRT on one of the GPUs, or the problem with it."""
        if index not in self._tensorrt:
            self._tensorrt[index] = probe_tensorrt(self.driver, index)
        return self._tensorrt[index]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to run on, and the reason.

    Args:
        device: "cpu" or "cuda:N".
        backend: "onnxruntime", "openvino" or "tensorrt".
        precision: "fp32", "bf16" or "fp16".
        reason: Shown to users.
        plan: The target of the plans to run; empty for the portable graphs.
    """

    device: str
    backend: str
    precision: str
    reason: str
    plan: str = ""


@dataclass(frozen=True, kw_only=True)
class PlanChoice:
    """A plan that fits, or why none does.

    Args:
        target: The folder of the plans; empty if none fits.
        precision: What they compute in.
        problem: Why none fits, and the command that builds one.
        present: Whether the engine contains plans at all; if not, nobody expects one to be used.
    """

    target: str = ""
    precision: str = ""
    problem: str = ""
    present: bool = True


def choose(
    hardware: Hardware,
    *,
    device: str = "auto",
    backend: str = "auto",
    precision: str = "auto",
    engine: EngineFile | None = None,
) -> Choice:
    """Return the best choice for a request; arguments and errors as for `candidates`."""
    return next(candidates(hardware, device=device, backend=backend, precision=precision, engine=engine))


def candidates(
    hardware: Hardware,
    *,
    device: str = "auto",
    backend: str = "auto",
    precision: str = "auto",
    engine: EngineFile | None = None,
) -> Iterator[Choice]:
    """Yield everything that meets a request, the best first.

    A later one is for the case that an earlier one turns out not to work, and is only looked for then.

    Args:
        hardware: This machine.
        device: "auto", "cpu", "cuda" or "cuda:N".
        backend: One of BACKENDS.
        precision: One of PRECISIONS.
        engine: What to run; without it no TensorRT plan is looked for.

    Raises:
        DeviceError: Nothing meets the request; the message says how to change that.
        FormatError: The engine's record of a plan is damaged.
    """
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d{1,3}))?", device) if isinstance(device, str) else None
    if match is None:
        raise DeviceError(f"device is {device!r}; expected 'auto', 'cpu', 'cuda' or 'cuda:N'")
    _check_names(backend, precision)

    # Settings that only one kind of device has.
    cpu_setting = _named(CPU_SETTINGS, backend, precision)
    gpu_setting = _named(GPU_SETTINGS, backend, precision)
    if device == "cpu" and gpu_setting:
        raise DeviceError(
            f"device 'cpu' is not available with {gpu_setting}, which is for GPUs; omit one of them"
        )
    if cpu_setting and device not in ("auto", "cpu"):
        raise DeviceError(
            f"device {device!r} is not available with {cpu_setting}, which is for the CPU; omit one of them"
        )
    if device == "cpu" or cpu_setting:
        reason = "asked for" if device == "cpu" else f"{cpu_setting} is for the CPU"
        yield _on_cpu(hardware, backend, precision, [reason])
        return

    # The GPU, and with "auto" the CPU behind it.
    reason = "" if device == "auto" else "asked for"
    found, obstacles = _on_gpu(hardware, int(match.group(1) or 0), backend, precision, engine, reason)
    if not found and (device != "auto" or gpu_setting):
        requested = gpu_setting if device == "auto" else f"device {device!r}"
        alternative = "omit it" if device == "auto" else "use device='cpu'"
        raise DeviceError(
            f"{requested} is not available: {'; '.join(obstacles)}. To run without it, {alternative}"
        )
    yield from found
    if device == "auto" and not gpu_setting:
        yield _on_cpu(hardware, backend, precision, obstacles)


def find_plan(
    engine: EngineFile | None, hardware: Hardware, index: int, precision: str = "auto"
) -> PlanChoice:
    """Return the plan of an engine for one of this machine's GPUs.

    Args:
        engine: The engine; None if it is not known yet.
        hardware: This machine; TensorRT is imported only if there is a plan to run.
        index: The GPU's number.
        precision: "auto", or what the plan must compute in.

    Raises:
        FormatError: A record is damaged.
    """
    known = records(engine) if engine is not None else {}
    if engine is None or not known:
        where = "the engine" if engine is None else str(engine.path)
        problem = f"{where} has no TensorRT plan; build one for this machine with: psp-rt build {where}"
        return PlanChoice(problem=problem, present=False)
    state = hardware.tensorrt(index)
    if state.machine is None:
        return PlanChoice(problem=f"the plans of {engine.path} cannot be run: {state.problem}")
    try:
        target = choose_target(engine, state.machine)
    except PlanError as error:
        return PlanChoice(problem=str(error))
    built_in = known[target].precision
    if precision not in ("auto", built_in):
        return PlanChoice(
            problem=f"the plan of {engine.path} for this machine computes in {built_in}, and "
            f"precision={precision!r} was asked for; use precision={built_in!r} or 'auto'"
        )
    return PlanChoice(target=target, precision=built_in)


def _check_names(backend: str, precision: str) -> None:
    if backend not in BACKENDS:
        raise DeviceError(f"backend is {backend!r}; expected one of {', '.join(map(repr, BACKENDS))}")
    if precision not in PRECISIONS:
        raise DeviceError(f"precision is {precision!r}; expected one of {', '.join(map(repr, PRECISIONS))}")
    capable = BACKENDS_OF.get(precision, BACKENDS)
    if backend != "auto" and backend not in capable:
        raise DeviceError(
            f"precision {precision!r} is not available from backend {backend!r}; "
            f"use backend={capable[0]!r} or precision='auto'"
        )


def _named(settings: tuple[str, str], backend: str, precision: str) -> str:
    """Return the setting that only one kind of device has, as the user wrote it; empty if there is none."""
    if backend == settings[0]:
        return f"backend={backend!r}"
    return f"precision={precision!r}" if precision == settings[1] else ""


def _on_gpu(
    hardware: Hardware, index: int, backend: str, precision: str, engine: EngineFile | None, reason: str
) -> tuple[list[Choice], list[str]]:
    """Return what runs on a GPU, the best first, and the obstacles to the rest."""
    driver = hardware.driver
    if driver.problem:
        return [], [driver.problem]
    if index >= len(driver.gpus):
        return [], ["there is only " + ", ".join(f"cuda:{number}" for number in range(len(driver.gpus)))]
    device, reason = f"cuda:{index}", reason or driver.gpus[index]
    found: list[Choice] = []
    obstacles: list[str] = []

    # TensorRT.
    if backend != "onnxruntime":
        plan = find_plan(engine, hardware, index, precision)
        if plan.target:
            why = f"{reason}; the engine's plan {plan.target}"
            found.append(
                Choice(
                    device=device, backend="tensorrt", precision=plan.precision, reason=why, plan=plan.target
                )
            )
        if _named(GPU_SETTINGS, backend, precision):
            return found, [plan.problem]
        obstacles += [plan.problem] if plan.present and plan.problem else []

    # ONNX Runtime.
    if hardware.providers is None:
        obstacles.append(f"ONNX Runtime, which runs models on the GPU, is not installed: {INSTALL_CUDA}")
    elif CUDA_PROVIDER not in hardware.providers:
        obstacles.append(
            "the installed onnxruntime has no CUDA provider, often because onnxruntime and "
            f"onnxruntime-gpu are both installed; fix it with: {INSTALL_CUDA}"
        )
    else:
        why = "; ".join([reason, *obstacles])
        found.append(Choice(device=device, backend="onnxruntime", precision="fp32", reason=why))
    return found, obstacles


def _on_cpu(hardware: Hardware, backend: str, precision: str, reasons: list[str]) -> Choice:
    if backend == "auto" and precision in ("auto", "fp32"):
        backend, why = _automatic(hardware)
        reasons = [*reasons, why]
    elif backend == "onnxruntime":
        if hardware.providers is None:
            raise DeviceError(
                f"ONNX Runtime is not installed; install it with: {INSTALL_CPU} (or 'psp_rt[cuda]' for a GPU)"
            )
    else:
        backend = "openvino"
        if hardware.openvino.problem:
            raise DeviceError(hardware.openvino.problem)
        if precision == "bf16" and "BF16" not in hardware.openvino.capabilities:
            raise DeviceError(
                "precision 'bf16' is not available: this processor has no BF16 arithmetic (AVX512_BF16 or "
                "AMX); use precision='fp32'"
            )
    precision = "fp32" if precision == "auto" else precision
    return Choice(device="cpu", backend=backend, precision=precision, reason="; ".join(reasons))


def _automatic(hardware: Hardware) -> tuple[str, str]:
    """Return the runtime for the CPU, and the reason."""
    openvino = hardware.openvino
    if not openvino.problem and (hardware.openvino_is_faster or hardware.providers is None):
        return "openvino", "the faster runtime on x86-64" if hardware.openvino_is_faster else "all there is"
    if hardware.providers is None:
        raise DeviceError(f"no runtime is available: ONNX Runtime is not installed; {openvino.problem}")
    return "onnxruntime", openvino.problem or f"OpenVINO has not been measured on {hardware.processor}"
