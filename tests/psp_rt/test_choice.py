"""Which device, runtime and precision a model gets, and what is said where it cannot be had."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from psp_rt import DeviceError, Translator
from psp_rt.hardware import choose as choice
from psp_rt.hardware import openvino as openvino_library
from psp_rt.hardware import probe as device
from psp_rt.hardware.choose import Choice, Machine, choose
from psp_rt.hardware.openvino import OpenVinoState
from psp_rt.hardware.probe import CUDA_PROVIDER, Driver

ROOT = Path(__file__).parents[2]
CPU_ONLY = ("CPUExecutionProvider",)
WITH_CUDA = (CUDA_PROVIDER, "CPUExecutionProvider")
ONE_GPU = Driver(gpus=("NVIDIA A10",), cuda_version="12.4")
NO_DRIVER = Driver(problem="no NVIDIA driver found")
WITH_BF16 = OpenVinoState(version="2026.4.1", capabilities=("FP32", "BF16"))
WITHOUT_BF16 = OpenVinoState(version="2026.4.1", capabilities=("FP32",))
NO_OPENVINO = OpenVinoState(problem="OpenVINO is not installed; install it with: pip install it")


def machine(
    *,
    driver: Driver = NO_DRIVER,
    providers: tuple[str, ...] | None = CPU_ONLY,
    openvino: OpenVinoState = WITH_BF16,
    processor: str = "x86_64",
) -> Machine:
    found = Machine()
    found.driver, found.providers, found.openvino, found.processor = driver, providers, openvino, processor
    return found


@pytest.fixture
def run_on(monkeypatch):
    """Make Translators believe that they are on another machine."""

    def pretend(**facts: object) -> None:
        monkeypatch.setattr("psp_rt.translator.Machine", lambda: machine(**facts))

    return pretend


# Devices.


def test_a_missing_gpu_is_an_error_and_never_a_slow_fallback(engine_paths, run_on):
    run_on()
    for asked in ("cuda", "cuda:0", "cuda:3"):
        with pytest.raises(DeviceError, match=f"device '{asked}' cannot be had: no NVIDIA driver found"):
            Translator(engine_paths["rgb"], device=asked)


def test_a_gpu_without_the_cuda_package_says_what_to_install(engine_paths, run_on):
    run_on(driver=ONE_GPU)
    with pytest.raises(
        DeviceError, match=r"often because onnxruntime and onnxruntime-gpu are both installed.*\[cuda\]"
    ):
        Translator(engine_paths["rgb"], device="cuda")
    run_on(driver=ONE_GPU, providers=None)
    with pytest.raises(DeviceError, match=r"ONNX Runtime, .*, is not installed: .*'psp_rt\[cuda\]'"):
        Translator(engine_paths["rgb"], device="cuda")


def test_a_session_that_falls_back_by_itself_is_an_error(engine_paths, run_on):
    """With these answers ONNX Runtime is asked for CUDA, does not have it, and takes the CPU."""
    run_on(driver=ONE_GPU, providers=WITH_CUDA)
    if CUDA_PROVIDER in (device.onnxruntime_providers() or ()):
        pytest.skip("this ONNX Runtime has CUDA")
    with (
        pytest.warns(UserWarning, match="CUDA"),
        pytest.raises(DeviceError, match="fell back from cuda:0 to the CPU"),
    ):
        Translator(engine_paths["rgb"], device="cuda")


def test_a_run_that_fails_on_its_device_never_moves_to_another(engine_paths):
    with Translator(engine_paths["rgb"], device="cpu", backend="onnxruntime", threads=1) as translator:
        sessions = translator._backend._sessions.values()
        # ONNX Runtime's default is True
        assert [session._enable_fallback for session in sessions] == [False] * 3


def test_a_gpu_that_does_not_exist_names_those_that_do():
    with pytest.raises(DeviceError, match="device 'cuda:1' cannot be had: there is only cuda:0"):
        choose(machine(driver=ONE_GPU, providers=WITH_CUDA), device="cuda:1")


def test_auto_takes_the_gpu_where_it_can_be_used_and_says_why_not_otherwise():
    chosen = choose(machine(driver=ONE_GPU, providers=WITH_CUDA))
    assert chosen == Choice(device="cuda:0", backend="onnxruntime", precision="fp32", reason="NVIDIA A10")
    without = choose(machine(driver=ONE_GPU))
    assert (without.device, without.backend) == ("cpu", "openvino")
    assert "has no CUDA provider" in without.reason


@pytest.mark.parametrize("asked", ["gpu", "cuda:x", "cuda:-1", "", None, 0])
def test_an_unknown_device_is_refused(asked):
    with pytest.raises(DeviceError, match="expected 'auto', 'cpu', 'cuda' or 'cuda:N'"):
        choose(machine(), device=asked)


def test_asking_the_driver_never_fails():
    driver = device.probe_driver()
    assert bool(driver.gpus) != bool(driver.problem)


def test_default_threads_are_the_physical_cores_at_hand():
    assert 0 <= device.default_threads() <= len(os.sched_getaffinity(0))


# Runtimes on the CPU.


def test_it_says_in_one_line_what_it_runs_on_and_why(engine_paths, backend, run_on, caplog):
    run_on(openvino=WITH_BF16 if backend == "openvino" else NO_OPENVINO)
    caplog.set_level(logging.INFO, "psp_rt")
    with Translator(engine_paths["rgb"], threads=1) as translator:
        assert (translator.device, translator.backend, translator.precision) == ("cpu", backend, "fp32")
    (line,) = caplog.messages
    if backend == "openvino":
        assert "rgb.engine runs on cpu, OpenVINO 20" in line
        assert line.endswith("fp32, 1 threads (no NVIDIA driver found; the faster runtime on x86-64)")
    else:
        assert "rgb.engine runs on cpu, ONNX Runtime " in line
        assert line.endswith(f"1 threads (no NVIDIA driver found; {NO_OPENVINO.problem})")


def test_a_runtime_asked_for_by_name_is_that_one(engine_paths, backend):
    for asked in ("cpu", "auto"):
        with Translator(engine_paths["rgb"], device=asked, backend=backend, threads=1) as translator:
            assert (translator.device, translator.backend) == ("cpu", backend)


def test_auto_takes_openvino_only_where_it_was_measured_or_nothing_else_is_there():
    assert choose(machine(processor="AMD64")).backend == "openvino"
    on_arm = choose(machine(processor="arm64"))
    assert on_arm.backend == "onnxruntime"
    assert on_arm.reason == "no NVIDIA driver found; OpenVINO has not been measured on arm64"
    assert choose(machine(processor="arm64", providers=None)).backend == "openvino"
    assert choose(machine(processor="arm64"), backend="openvino").backend == "openvino"


def test_a_missing_runtime_is_an_error_that_says_what_to_install():
    with pytest.raises(DeviceError, match=r"ONNX Runtime is not installed; .*: pip install 'psp_rt\[cpu\]'"):
        choose(machine(providers=None), device="cpu", backend="onnxruntime")
    with pytest.raises(DeviceError, match="OpenVINO is not installed; install it with: pip install it"):
        choose(machine(openvino=NO_OPENVINO), device="cpu", backend="openvino")
    with pytest.raises(DeviceError, match="no runtime can be used: ONNX Runtime is not installed; OpenVINO"):
        choose(machine(providers=None, openvino=NO_OPENVINO))


def test_a_broken_openvino_is_an_error_only_where_it_is_asked_for(monkeypatch):
    def broken():
        raise OSError("libtbb.so.12: cannot open shared object file")

    monkeypatch.setattr(openvino_library, "load_openvino", broken)
    pytest.importorskip("openvino")
    found = machine(openvino=openvino_library.probe_openvino())
    problem = r"cannot be loaded \(libtbb.so.12: .*\); mend it with: pip install --force-reinstall"
    with pytest.raises(DeviceError, match=problem):
        choose(found, backend="openvino")
    chosen = choose(found)
    assert chosen.backend == "onnxruntime"
    assert "libtbb.so.12" in chosen.reason


def test_openvino_says_what_to_install_where_it_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    problem = openvino_library.probe_openvino().problem
    assert problem == "OpenVINO is not installed; install it with: pip install 'psp_rt[openvino]'"


def test_openvino_is_for_the_cpu():
    with pytest.raises(DeviceError, match="device 'cuda' cannot be had with backend='openvino'"):
        choose(machine(driver=ONE_GPU, providers=WITH_CUDA), device="cuda", backend="openvino")
    chosen = choose(machine(driver=ONE_GPU, providers=WITH_CUDA), backend="openvino")
    assert (chosen.device, chosen.reason) == ("cpu", "backend='openvino' is for the CPU")


@pytest.mark.parametrize("asked", ["TensorRT", "OpenVINO", "", None])
def test_an_unknown_runtime_is_refused(asked):
    with pytest.raises(DeviceError, match="expected one of 'auto', 'onnxruntime', 'openvino', 'tensorrt'"):
        choose(machine(), backend=asked)


# Precisions.


def test_bf16_takes_openvino():
    chosen = choose(machine(), precision="bf16")
    assert (chosen.device, chosen.backend, chosen.precision) == ("cpu", "openvino", "bf16")


def test_bf16_that_cannot_be_had_says_what_is_missing_and_what_to_type():
    with pytest.raises(DeviceError, match=r"no BF16 arithmetic .*; use precision='fp32'"):
        choose(machine(openvino=WITHOUT_BF16), precision="bf16")
    with pytest.raises(DeviceError, match="OpenVINO is not installed; install it with: pip install it"):
        choose(machine(openvino=NO_OPENVINO), precision="bf16")
    with pytest.raises(DeviceError, match="use backend='openvino' or precision='auto'"):
        choose(machine(), backend="onnxruntime", precision="bf16")
    with pytest.raises(DeviceError, match="device 'cuda:0' cannot be had with precision='bf16'"):
        choose(machine(driver=ONE_GPU, providers=WITH_CUDA), device="cuda:0", precision="bf16")


@pytest.mark.parametrize("asked", ["f16", "f32", "", None])
def test_an_unknown_precision_is_refused(asked):
    with pytest.raises(DeviceError, match="expected one of 'auto', 'fp32', 'bf16', 'fp16'"):
        choose(machine(), precision=asked)


# What loading costs.


def test_only_the_chosen_runtime_is_imported(engine_paths, backend):
    code = (
        "import sys; import psp_rt\n"
        f"psp_rt.Translator({str(engine_paths['rgb'])!r}, device='cpu', backend={backend!r})\n"
        "print([name for name in ('onnxruntime', 'openvino') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == f"[{backend!r}]\n"


def test_openvino_tells_nobody_that_it_was_imported():
    pytest.importorskip("openvino")
    code = (
        "import sys; from psp_rt.openvino_library import load_openvino\n"
        "print(load_openvino().__version__ != '')\n"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "True\n[]\n"


def test_the_facts_of_a_machine_are_looked_up_once_and_only_when_needed(monkeypatch):
    looks = []
    monkeypatch.setattr(choice, "probe_driver", lambda: NO_DRIVER)
    monkeypatch.setattr(choice, "onnxruntime_providers", lambda: looks.append("onnxruntime") or CPU_ONLY)
    monkeypatch.setattr(choice, "probe_openvino", lambda: looks.append("openvino") or WITH_BF16)
    found = Machine()
    found.processor = "x86_64"
    assert [choose(found).backend, choose(found, device="cpu").backend] == ["openvino"] * 2
    assert looks == ["openvino"]
