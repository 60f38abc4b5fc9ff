"""Which device, which runtime and which precision a model gets, and why.

``auto`` takes a GPU through ONNX Runtime, else OpenVINO on the CPU, else ONNX Runtime on the CPU.
What is asked for by name is that or an error, never something else in silence.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from functools import cached_property

from .device import CUDA_PROVIDER, INSTALL_CPU, INSTALL_CUDA, Driver, onnxruntime_providers, probe_driver
from .errors import DeviceError
from .openvino_library import OpenVinoState, probe_openvino

BACKENDS = ("auto", "onnxruntime", "openvino")
PRECISIONS = ("fp32", "bf16")


class Machine:
    """What there is to run on. Each fact is looked up when it is first needed: a look may be an import."""

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


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to run on, and the reason.

    Args:
        device: "cpu" or "cuda:N".
        backend: "onnxruntime" or "openvino".
        precision: "fp32" or "bf16".
    """

    device: str
    backend: str
    precision: str
    reason: str


def choose(
    machine: Machine, *, device: str = "auto", backend: str = "auto", precision: str = "fp32"
) -> Choice:
    """Return what to run on for what was asked.

    Raises:
        DeviceError: It cannot be had; the message says how to get it.
    """
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d{1,3}))?", device) if isinstance(device, str) else None
    if match is None:
        raise DeviceError(f"device is {device!r}; expected 'auto', 'cpu', 'cuda' or 'cuda:N'")
    _check_names(backend, precision)
    if device == "cpu":
        return _on_cpu(machine, backend, precision, ["asked for"])
    if backend == "openvino" or precision == "bf16":
        setting = f"backend={backend!r}" if backend == "openvino" else f"precision={precision!r}"
        if device == "auto":
            return _on_cpu(machine, backend, precision, [f"{setting} is for the CPU"])
        raise DeviceError(
            f"device {device!r} cannot be had with {setting}, which is for the CPU; leave one out"
        )
    index = int(match.group(1) or 0)
    obstacle = _cuda_obstacle(index, machine)
    if not obstacle:
        reason = "asked for" if device != "auto" else machine.driver.gpus[index]
        return Choice(device=f"cuda:{index}", backend="onnxruntime", precision="fp32", reason=reason)
    if device != "auto":
        raise DeviceError(f"device {device!r} cannot be had: {obstacle}; use device='cpu' to run without it")
    return _on_cpu(machine, backend, precision, [obstacle])


def _check_names(backend: str, precision: str) -> None:
    if backend not in BACKENDS:
        raise DeviceError(f"backend is {backend!r}; expected one of {', '.join(map(repr, BACKENDS))}")
    if precision not in PRECISIONS:
        raise DeviceError(f"precision is {precision!r}; expected 'fp32' or 'bf16'")
    if precision == "bf16" and backend == "onnxruntime":
        raise DeviceError(
            "precision 'bf16' cannot be had from ONNX Runtime, which computes in fp32 here; "
            "use backend='openvino' or precision='fp32'"
        )


def _on_cpu(machine: Machine, backend: str, precision: str, reasons: list[str]) -> Choice:
    if backend == "auto" and precision == "fp32":
        backend, why = _automatic(machine)
        reasons = [*reasons, why]
    elif backend == "onnxruntime":
        _check_onnxruntime(machine)
    else:
        backend = "openvino"
        _check_openvino(machine, precision)
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


def _cuda_obstacle(index: int, machine: Machine) -> str:
    if machine.driver.problem:
        return machine.driver.problem
    if index >= len(machine.driver.gpus):
        return "there is only " + ", ".join(f"cuda:{index}" for index in range(len(machine.driver.gpus)))
    if machine.providers is None:
        return f"ONNX Runtime, which runs models on the GPU, is not installed: {INSTALL_CUDA}"
    if CUDA_PROVIDER not in machine.providers:
        return (
            "the installed onnxruntime has no CUDA provider, often because onnxruntime and "
            f"onnxruntime-gpu are both installed; mend it with: {INSTALL_CUDA}"
        )
    return ""
