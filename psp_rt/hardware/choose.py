"""Which device, which runtime and which precision a model gets, and why.

``auto`` takes a GPU through TensorRT where the engine holds a plan for it, else through ONNX Runtime, else
OpenVINO on the CPU, else ONNX Runtime on the CPU. What is asked for by name is that or an error, never
something else in silence.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from functools import cached_property

from ..engine.reader import EngineFile
from ..errors import DeviceError
from .openvino import OpenVinoState, probe_openvino
from .plan_choice import find_plan
from .probe import CUDA_PROVIDER, INSTALL_CPU, INSTALL_CUDA, Driver, onnxruntime_providers, probe_driver
from .tensorrt import TensorRtState, probe_tensorrt

BACKENDS = ("auto", "onnxruntime", "openvino", "tensorrt")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
BACKENDS_OF = {"bf16": ("openvino",), "fp16": ("tensorrt",), "fp32": BACKENDS}
CPU_SETTINGS, GPU_SETTINGS = ("openvino", "bf16"), ("tensorrt", "fp16")


class Machine:
    """What there is to run on. Each fact is looked up when it is first needed: a look may be an import."""

    def __init__(self) -> None:
        self._tensorrt: dict[int, TensorRtState] = {}

    @cached_property
    def driver(self) -> Driver:
        """NVIDIA's driver."""
        return probe_driver()

    @cached_property
    def providers(self) -> tuple[str, ...] | None:
        """What ONNX Runtime can run on; None where it is not installed."""
        return onnxruntime_providers()

    @cached_property
    def openvino(self) -> OpenVinoState:
        """OpenVINO, or what is wrong with it."""
        return probe_openvino()

    @cached_property
    def processor(self) -> str:
        """The processor's architecture, for example x86_64."""
        return platform.machine()

    @property
    def measured_openvino(self) -> bool:
        """Whether OpenVINO was measured to be the faster one on such processors; else nobody has looked."""
        return self.processor in ("x86_64", "AMD64")

    def tensorrt(self, index: int) -> TensorRtState:
        """Return TensorRT on one of the GPUs, or what is wrong with it."""
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
        reason: For people.
        plan: The target of the plans to run; empty for the portable graphs.
    """

    device: str
    backend: str
    precision: str
    reason: str
    plan: str = ""


def choose(
    machine: Machine,
    *,
    device: str = "auto",
    backend: str = "auto",
    precision: str = "auto",
    engine: EngineFile | None = None,
) -> Choice:
    """Return what to run on for what was asked.

    Args:
        engine: What shall run; without it no TensorRT plan is looked for.

    Raises:
        DeviceError: It cannot be had; the message says how to get it.
        FormatError: The engine's record of a plan is damaged.
    """
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d{1,3}))?", device) if isinstance(device, str) else None
    if match is None:
        raise DeviceError(f"device is {device!r}; expected 'auto', 'cpu', 'cuda' or 'cuda:N'")
    _check_names(backend, precision)
    cpu_setting = _named(CPU_SETTINGS, backend, precision)
    gpu_setting = _named(GPU_SETTINGS, backend, precision)
    if device == "cpu" and gpu_setting:
        raise DeviceError(f"device 'cpu' cannot be had with {gpu_setting}, which is for GPUs; leave one out")
    if device == "cpu":
        return _on_cpu(machine, backend, precision, ["asked for"])
    if cpu_setting and device != "auto":
        raise DeviceError(
            f"device {device!r} cannot be had with {cpu_setting}, which is for the CPU; leave one out"
        )
    if cpu_setting:
        return _on_cpu(machine, backend, precision, [f"{cpu_setting} is for the CPU"])
    why = "" if device == "auto" else "asked for"
    found = _on_gpu(machine, int(match.group(1) or 0), backend, precision, engine, why)
    if isinstance(found, Choice):
        return found
    if device != "auto" or gpu_setting:
        asked = gpu_setting if device == "auto" else f"device {device!r}"
        instead = "leave it out" if device == "auto" else "use device='cpu'"
        raise DeviceError(f"{asked} cannot be had: {'; '.join(found)}; {instead} to run without it")
    return _on_cpu(machine, backend, precision, found)


def _check_names(backend: str, precision: str) -> None:
    if backend not in BACKENDS:
        raise DeviceError(f"backend is {backend!r}; expected one of {', '.join(map(repr, BACKENDS))}")
    if precision not in PRECISIONS:
        raise DeviceError(f"precision is {precision!r}; expected one of {', '.join(map(repr, PRECISIONS))}")
    capable = BACKENDS_OF.get(precision, BACKENDS)
    if backend != "auto" and backend not in capable:
        raise DeviceError(
            f"precision {precision!r} cannot be had from backend {backend!r}; "
            f"use backend={capable[0]!r} or precision='auto'"
        )


def _named(settings: tuple[str, str], backend: str, precision: str) -> str:
    """Return the setting that only one kind of device has, as it was written; empty if there is none."""
    if backend == settings[0]:
        return f"backend={backend!r}"
    return f"precision={precision!r}" if precision == settings[1] else ""


def _on_gpu(
    machine: Machine, index: int, backend: str, precision: str, engine: EngineFile | None, why: str
) -> Choice | list[str]:
    """Return what runs on a GPU, or the obstacles."""
    obstacle = _gpu_obstacle(index, machine)
    if obstacle:
        return [obstacle]
    device, why = f"cuda:{index}", why or machine.driver.gpus[index]
    notes: list[str] = []
    if backend != "onnxruntime":
        plan = find_plan(engine, lambda: machine.tensorrt(index), precision)
        if plan.target:
            why = f"{why}; the engine's plan {plan.target}"
            return Choice(
                device=device, backend="tensorrt", precision=plan.precision, reason=why, plan=plan.target
            )
        if _named(GPU_SETTINGS, backend, precision):
            return [plan.problem]
        notes += [plan.problem] if plan.present else []
    obstacle = _onnxruntime_obstacle(machine)
    if obstacle:
        return [*notes, obstacle]
    return Choice(device=device, backend="onnxruntime", precision="fp32", reason="; ".join([why, *notes]))


def _on_cpu(machine: Machine, backend: str, precision: str, reasons: list[str]) -> Choice:
    if backend == "auto" and precision in ("auto", "fp32"):
        backend, why = _automatic(machine)
        reasons = [*reasons, why]
    elif backend == "onnxruntime":
        _check_onnxruntime(machine)
    else:
        backend = "openvino"
        _check_openvino(machine, precision)
    precision = "fp32" if precision == "auto" else precision
    return Choice(device="cpu", backend=backend, precision=precision, reason="; ".join(reasons))


def _automatic(machine: Machine) -> tuple[str, str]:
    """Return the runtime for the CPU, and the reason."""
    openvino = machine.openvino
    if not openvino.problem and (machine.measured_openvino or machine.providers is None):
        return "openvino", "the faster runtime on x86-64" if machine.measured_openvino else "all there is"
    if machine.providers is None:
        raise DeviceError(f"no runtime can be used: ONNX Runtime is not installed; {openvino.problem}")
    return "onnxruntime", openvino.problem or f"OpenVINO has not been measured on {machine.processor}"


def _check_onnxruntime(machine: Machine) -> None:
    if machine.providers is None:
        raise DeviceError(
            f"ONNX Runtime is not installed; install it with: {INSTALL_CPU} (or 'psp_rt[cuda]' for a GPU)"
        )


def _check_openvino(machine: Machine, precision: str) -> None:
    if machine.openvino.problem:
        raise DeviceError(machine.openvino.problem)
    if precision == "bf16" and "BF16" not in machine.openvino.capabilities:
        raise DeviceError(
            "precision 'bf16' cannot be had: this processor has no BF16 arithmetic (AVX512_BF16 or AMX); "
            "use precision='fp32'"
        )


def _gpu_obstacle(index: int, machine: Machine) -> str:
    if machine.driver.problem:
        return machine.driver.problem
    if index >= len(machine.driver.gpus):
        return "there is only " + ", ".join(f"cuda:{index}" for index in range(len(machine.driver.gpus)))
    return ""


def _onnxruntime_obstacle(machine: Machine) -> str:
    if machine.providers is None:
        return f"ONNX Runtime, which runs models on the GPU, is not installed: {INSTALL_CUDA}"
    if CUDA_PROVIDER not in machine.providers:
        return (
            "the installed onnxruntime has no CUDA provider, often because onnxruntime and "
            f"onnxruntime-gpu are both installed; mend it with: {INSTALL_CUDA}"
        )
    return ""
