"""Which device, runtime and precision a model gets, and what an unavailable one says."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from psp_rt import DeviceError, EngineFile, FormatError, Translator
from psp_rt.build import BuildOptions, BuildRequest, build
from psp_rt.cli.main import main
from psp_rt.hardware import openvino as openvino_library
from psp_rt.hardware import probe
from psp_rt.hardware.choose import Choice, Hardware, candidates, choose
from psp_rt.hardware.openvino import OpenVinoState
from psp_rt.hardware.probe import CUDA_PROVIDER, Driver
from psp_rt.hardware.tensorrt import TensorRtState, probe_tensorrt
from tests.models import tiny_engine
from tests.stand_ins import gpu as fake_gpu
from tests.stand_ins.gpu import TARGET

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
    driver: Driver | None = NO_DRIVER,
    providers: tuple[str, ...] | None = CPU_ONLY,
    openvino: OpenVinoState = WITH_BF16,
    processor: str = "x86_64",
) -> Hardware:
    """Return a machine; its driver is the one here if that is None."""
    found = Hardware()
    if driver is not None:
        found.driver = driver
    found.providers, found.openvino, found.processor = providers, openvino, processor
    return found


@pytest.fixture
def run_on(monkeypatch):
    """Make Translators believe that they are on another machine."""

    def pretend(**facts: object) -> None:
        monkeypatch.setattr("psp_rt.opening.Hardware", lambda: machine(**facts))

    return pretend


# Devices.


def test_a_missing_gpu_is_an_error_and_never_a_slow_fallback(engine_paths, run_on):
    run_on()
    for asked in ("cuda", "cuda:0", "cuda:3"):
        with pytest.raises(DeviceError, match=f"'{asked}'.* no NVIDIA driver found.*device='cpu'"):
            Translator(engine_paths["rgb"], device=asked)


def test_a_gpu_without_the_cuda_package_says_what_to_install(engine_paths, run_on):
    run_on(driver=ONE_GPU)
    with pytest.raises(DeviceError, match=r"onnxruntime and onnxruntime-gpu are both installed.*\[cuda\]"):
        Translator(engine_paths["rgb"], device="cuda")
    run_on(driver=ONE_GPU, providers=None)
    with pytest.raises(DeviceError, match=r"ONNX Runtime, .* not installed: .*'psp_rt\[cuda\]'"):
        Translator(engine_paths["rgb"], device="cuda")


def test_a_session_that_falls_back_by_itself_is_no_silent_one(engine_paths, run_on, caplog):
    """With these answers ONNX Runtime is asked for CUDA, does not have it, and takes the CPU."""
    run_on(driver=ONE_GPU, providers=WITH_CUDA)
    if CUDA_PROVIDER in (probe.onnxruntime_providers() or ()):
        pytest.skip("this ONNX Runtime has CUDA")
    with (
        pytest.warns(UserWarning, match="CUDA"),
        pytest.raises(DeviceError, match=r"fell back from cuda:0 to the CPU.*'psp_rt\[cuda\]'"),
    ):
        Translator(engine_paths["rgb"], device="cuda")
    with pytest.warns(UserWarning, match="CUDA"):
        translator = Translator(engine_paths["rgb"], threads=1)
    with translator:
        assert translator.device == "cpu"
        assert "fell back from cuda:0" in translator.runs_on
    assert "fell back from cuda:0" in caplog.text


def test_a_run_that_fails_on_its_device_never_moves_to_another(engine_paths):
    with Translator(engine_paths["rgb"], device="cpu", backend="onnxruntime", threads=1) as translator:
        sessions = [translator.bare(name) for name in ("encoder", "mapping", "generator")]
        # ONNX Runtime's default is True
        assert [session._enable_fallback for session in sessions] == [False] * 3


def test_a_gpu_that_does_not_exist_names_those_that_do():
    with pytest.raises(DeviceError, match=r"'cuda:1'.* there is only cuda:0"):
        choose(machine(driver=ONE_GPU, providers=WITH_CUDA), device="cuda:1")


def test_auto_takes_a_usable_gpu_and_otherwise_says_why_not():
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
    driver = probe.probe_driver()
    assert bool(driver.gpus) != bool(driver.problem)


def test_default_threads_are_the_physical_cores_at_hand():
    assert 0 <= probe.default_threads() <= len(os.sched_getaffinity(0))


# Runtimes on the CPU.


def test_one_line_says_what_it_runs_on_and_why(engine_paths, backend, run_on, caplog):
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


def test_auto_takes_openvino_where_it_was_measured_or_is_alone():
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
    with pytest.raises(DeviceError, match="ONNX Runtime is not installed; OpenVINO"):
        choose(machine(providers=None, openvino=NO_OPENVINO))


def test_a_broken_openvino_is_an_error_only_if_it_is_asked_for(monkeypatch):
    def broken():
        raise OSError("libtbb.so.12: cannot open shared object file")

    monkeypatch.setattr(openvino_library, "load_openvino", broken)
    pytest.importorskip("openvino")
    found = machine(openvino=openvino_library.probe_openvino())
    with pytest.raises(DeviceError, match=r"\(libtbb.so.12: .*\).*: pip install --force-reinstall"):
        choose(found, backend="openvino")
    chosen = choose(found)
    assert chosen.backend == "onnxruntime"
    assert "libtbb.so.12" in chosen.reason


def test_a_missing_openvino_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    problem = openvino_library.probe_openvino().problem
    assert problem == "OpenVINO is not installed; install it with: pip install 'psp_rt[openvino]'"


def test_openvino_is_for_the_cpu():
    with pytest.raises(DeviceError, match=r"'cuda' .* backend='openvino'"):
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


def test_unavailable_bf16_says_what_is_missing_and_what_to_type():
    with pytest.raises(DeviceError, match=r"no BF16 arithmetic .*; use precision='fp32'"):
        choose(machine(openvino=WITHOUT_BF16), precision="bf16")
    with pytest.raises(DeviceError, match="OpenVINO is not installed; install it with: pip install it"):
        choose(machine(openvino=NO_OPENVINO), precision="bf16")
    with pytest.raises(DeviceError, match="use backend='openvino' or precision='auto'"):
        choose(machine(), backend="onnxruntime", precision="bf16")
    with pytest.raises(DeviceError, match=r"'cuda:0' .* precision='bf16'"):
        choose(machine(driver=ONE_GPU, providers=WITH_CUDA), device="cuda:0", precision="bf16")


@pytest.mark.parametrize("asked", ["f16", "f32", "", None])
def test_an_unknown_precision_is_refused(asked):
    with pytest.raises(DeviceError, match="expected one of 'auto', 'fp32', 'bf16', 'fp16'"):
        choose(machine(), precision=asked)


# TensorRT plans.


@pytest.fixture
def path(gpu, tmp_path):
    """An engine with a plan for the stand-in's machine."""
    return fake_gpu.engine_with_plans(tmp_path / "a.engine")


def choose_for(path, *, driver=None, providers=WITH_CUDA, **asked):
    with EngineFile.open(path) as engine:
        return choose(machine(driver=driver, providers=providers), engine=engine, **asked)


def test_a_fitting_plan_is_taken_before_onnx_runtime(path):
    chosen = choose_for(path)
    assert (chosen.device, chosen.backend, chosen.precision, chosen.plan) == (
        "cuda:0", "tensorrt", "fp32", TARGET
    )  # fmt: skip
    assert chosen.reason == f"NVIDIA H200; the engine's plan {TARGET}"
    for asked in ({"device": "cuda"}, {"device": "cuda:0"}):
        assert choose_for(path, **asked).reason == f"asked for; the engine's plan {TARGET}"
    assert choose_for(path, providers=None).backend == "tensorrt"  # it needs no ONNX Runtime


def test_candidates_come_in_the_order_of_preference_and_by_name_alone(path):
    with EngineFile.open(path) as engine:

        def order(**asked):
            found = candidates(machine(driver=None, providers=WITH_CUDA), engine=engine, **asked)
            return [(choice.device, choice.backend) for choice in found]

        on_gpu = [("cuda:0", "tensorrt"), ("cuda:0", "onnxruntime")]
        assert order() == [*on_gpu, ("cpu", "openvino")]
        assert order(device="cuda") == on_gpu
        assert order(backend="tensorrt") == on_gpu[:1]
        assert order(device="cpu") == [("cpu", "openvino")]


def test_another_backend_asked_for_by_name_is_that_one(path):
    assert choose_for(path, backend="onnxruntime").backend == "onnxruntime"
    assert choose_for(path, device="cpu").device == "cpu"
    assert choose_for(path, backend="openvino").backend == "openvino"


def test_a_plan_for_another_machine_names_both_and_the_command(path, monkeypatch):
    fake_gpu.install(monkeypatch, "11.0.0.114")
    rebuild = r"H200 .* with TensorRT 10\.13\.3\.9.*psp-rt build .*a\.engine"
    chosen = choose_for(path)
    assert (chosen.backend, chosen.precision, chosen.plan) == ("onnxruntime", "fp32", "")
    assert chosen.reason.startswith(f"NVIDIA H200; {path} has no plan for this machine, NVIDIA H200 of")
    assert chosen.reason.endswith(f"psp-rt build {path}")
    without = choose_for(path, providers=CPU_ONLY)
    assert (without.device, without.reason.count("has no plan for this machine")) == ("cpu", 1)
    with pytest.raises(DeviceError, match=rf"backend='tensorrt' .*{rebuild}"):
        choose_for(path, backend="tensorrt")
    with pytest.raises(DeviceError, match=rf"device 'cuda' .*{rebuild}"):
        choose_for(path, backend="tensorrt", device="cuda")


def test_an_engine_without_plans_does_not_even_load_tensorrt(gpu, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # its import fails
    path = tiny_engine.build(tmp_path / "b.engine")
    chosen = choose_for(path)
    assert (chosen.backend, chosen.reason) == ("onnxruntime", "NVIDIA H200")
    with pytest.raises(DeviceError, match=r"b\.engine has no TensorRT plan; build one .*psp-rt build"):
        choose_for(path, backend="tensorrt")


def test_without_a_gpu_tensorrt_is_an_error_and_plans_are_passed_over(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert choose_for(path, driver=NO_DRIVER).reason == "no NVIDIA driver found; the faster runtime on x86-64"
    for asked in ({"backend": "tensorrt"}, {"precision": "fp16"}, {"backend": "tensorrt", "device": "cuda"}):
        with pytest.raises(DeviceError, match="no NVIDIA driver found"):
            choose_for(path, driver=NO_DRIVER, **asked)
    assert probe_tensorrt(NO_DRIVER, 0) == TensorRtState(problem="no NVIDIA driver found")


def test_tensorrt_is_for_gpus():
    for asked in ({"backend": "tensorrt"}, {"precision": "fp16"}):
        ((name, value),) = asked.items()
        with pytest.raises(DeviceError, match=f"'cpu' .*{name}='{value}'.* for GPUs"):
            choose(machine(), device="cpu", **asked)


def test_a_plan_of_another_precision_is_not_run_silently(path):
    assert choose_for(path, precision="fp32").plan == TARGET
    with pytest.raises(DeviceError, match=r"fp32, and precision='fp16' was asked for; use"):
        choose_for(path, precision="fp16")
    for backend in ("onnxruntime", "openvino"):
        with pytest.raises(DeviceError, match=f"'fp16' .*'{backend}'; use backend='tensorrt'"):
            choose_for(path, precision="fp16", backend=backend)


def test_a_plan_in_fp16_is_taken_by_itself_and_reported(gpu, tmp_path):
    members = tiny_engine.members()
    members |= {f"{name}.fp16.onnx": members[f"{name}.onnx"] for name in ("encoder", "generator")}
    path = tiny_engine.write_raw(tmp_path / "h.engine", members, precision="fp16")
    build(BuildRequest(engine=path, options=BuildOptions()))
    assert [choose_for(path, precision=asked).precision for asked in ("auto", "fp16")] == ["fp16", "fp16"]
    asked = choose_for(path, precision="fp32")
    assert (asked.backend, asked.precision) == ("onnxruntime", "fp32")
    assert "fp16, and precision='fp32' was asked for" in asked.reason


@pytest.mark.parametrize(
    ("module", "words", "install"),
    [
        ("tensorrt", "TensorRT cannot be loaded", "'psp_rt[tensorrt]'"),
        ("cuda.bindings.driver", "cuda-bindings cannot be loaded", "'cuda-bindings>=12.9.1,<14'"),
    ],
)
def test_a_missing_library_is_named_if_a_plan_needs_it(path, monkeypatch, module, words, install):
    monkeypatch.setitem(sys.modules, module, None)
    chosen = choose_for(path)
    assert chosen.backend == "onnxruntime"
    assert words in chosen.reason
    assert f"pip install {install}" in chosen.reason


def test_a_damaged_record_is_an_error(gpu, path, tmp_path):
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if name != "manifest.json"}
    files[f"plans/{TARGET}/record.json"] = json.dumps({"machine": 1}).encode()
    damaged = tiny_engine.write_raw(tmp_path / "d.engine", files)
    with pytest.raises(FormatError, match="build the plan again"):
        choose_for(damaged)


def test_info_and_doctor_show_the_plans(path, monkeypatch):
    shown = CliRunner().invoke(main, ["info", str(path)]).output
    assert "\nTensorRT plans\n" in shown
    assert " fp32, batches 1 to 4, for NVIDIA H200 of compute capability 9.0" in shown
    shown = CliRunner().invoke(main, ["doctor", str(path)]).output
    assert f"plan             {TARGET}: runs here\n" in shown
    assert "runs on cuda:0 with tensorrt, fp32" in shown
    fake_gpu.install(monkeypatch, "11.0.0.114")
    shown = CliRunner().invoke(main, ["doctor", str(path)]).output
    assert f"plan             {TARGET}: it was built for NVIDIA H200" in shown


# What loading costs.


def test_only_the_chosen_runtime_is_imported(engine_paths, backend):
    code = (
        "import sys; import psp_rt\n"
        f"psp_rt.Translator({str(engine_paths['rgb'])!r}, device='cpu', backend={backend!r})\n"
        "print([name for name in ('onnxruntime', 'openvino', 'cuda') if name in sys.modules])\n"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    # OpenVINO's package would report its import over the network.
    assert done.stdout == f"[{backend!r}]\n[]\n"


def test_facts_of_a_machine_are_looked_up_once_and_if_needed(monkeypatch):
    looks, module = [], sys.modules["psp_rt.hardware.choose"]
    monkeypatch.setattr(module, "probe_driver", lambda: NO_DRIVER)
    monkeypatch.setattr(module, "onnxruntime_providers", lambda: looks.append("onnxruntime") or CPU_ONLY)
    monkeypatch.setattr(module, "probe_openvino", lambda: looks.append("openvino") or WITH_BF16)
    found = Hardware()
    found.processor = "x86_64"
    assert [choose(found).backend, choose(found, device="cpu").backend] == ["openvino"] * 2
    assert looks == ["openvino"]
