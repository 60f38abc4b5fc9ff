"""Whether an engine's TensorRT plan is run here, and what is said where it is not."""

from __future__ import annotations

import json
import sys
import zipfile

import pytest
from click.testing import CliRunner

from psp_rt import DeviceError, EngineFile, FormatError
from psp_rt.cli import doctor
from psp_rt.cli.main import main
from psp_rt.hardware import choose as choice
from psp_rt.hardware.openvino import OpenVinoState
from psp_rt.hardware.probe import CUDA_PROVIDER, Driver
from psp_rt.hardware.tensorrt import probe_tensorrt
from tests.models import tiny_engine
from tests.stand_ins import gpu as fake_gpu
from tests.stand_ins.gpu import DRIVER, TARGET

WITH_CUDA = (CUDA_PROVIDER, "CPUExecutionProvider")


def machine(providers=WITH_CUDA):
    found = choice.Machine()
    found.providers, found.openvino, found.processor = providers, OpenVinoState(version="1"), "x86_64"
    return found


@pytest.fixture
def path(gpu, tmp_path):
    """An engine with a plan for the machine that tests run on."""
    return fake_gpu.engine_with_plans(tmp_path / "a.engine")


def choose(path, *, providers=WITH_CUDA, **asked):
    with EngineFile.open(path) as engine:
        return choice.choose(machine(providers), engine=engine, **asked)


def test_a_fitting_plan_is_taken_before_onnx_runtime(path):
    chosen = choose(path)
    assert (chosen.device, chosen.backend, chosen.precision, chosen.plan) == (
        "cuda:0", "tensorrt", "fp32", TARGET
    )  # fmt: skip
    assert chosen.reason == f"NVIDIA H200; the engine's plan {TARGET}"
    for asked in ({"device": "cuda"}, {"device": "cuda:0"}):
        assert choose(path, **asked).reason == f"asked for; the engine's plan {TARGET}"
    assert choose(path, providers=None).backend == "tensorrt"  # it needs no ONNX Runtime


def test_another_backend_asked_for_by_name_is_that_one(path):
    assert choose(path, backend="onnxruntime").backend == "onnxruntime"
    assert choose(path, device="cpu").device == "cpu"
    assert choose(path, backend="openvino").backend == "openvino"


def test_a_plan_for_another_machine_is_named_with_the_command_that_builds_one(path, monkeypatch):
    fake_gpu.install(monkeypatch, "11.0.0.114")
    rebuild = r"H200 .* with TensorRT 10\.13\.3\.9.*Build one with: psp-rt build .*a\.engine"
    chosen = choose(path)
    assert (chosen.backend, chosen.precision, chosen.plan) == ("onnxruntime", "fp32", "")
    assert chosen.reason.startswith(f"NVIDIA H200; {path} has no plan for this machine, NVIDIA H200 of")
    assert chosen.reason.endswith(f"Build one with: psp-rt build {path}")
    without = choose(path, providers=("CPUExecutionProvider",))
    assert (without.device, without.reason.count("has no plan for this machine")) == ("cpu", 1)
    with pytest.raises(DeviceError, match=rf"backend='tensorrt' cannot be had: .*{rebuild}"):
        choose(path, backend="tensorrt")
    with pytest.raises(DeviceError, match=rf"device 'cuda' cannot be had: .*{rebuild}"):
        choose(path, backend="tensorrt", device="cuda")


def test_an_engine_without_plans_does_not_even_load_tensorrt(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "probe_tensorrt", None)  # a call would be another error
    path = tiny_engine.build(tmp_path / "b.engine")
    chosen = choose(path)
    assert (chosen.backend, chosen.reason) == ("onnxruntime", "NVIDIA H200")
    with pytest.raises(DeviceError, match=r"b\.engine has no TensorRT plan; build one .*psp-rt build"):
        choose(path, backend="tensorrt")


def test_without_a_gpu_tensorrt_is_an_error_and_its_plans_are_passed_over(path, monkeypatch):
    monkeypatch.setattr(choice, "probe_driver", lambda: Driver(problem="no NVIDIA driver found"))
    monkeypatch.setattr(choice, "probe_tensorrt", None)
    assert choose(path).reason == "no NVIDIA driver found; the faster runtime on x86-64"
    for asked in ({"backend": "tensorrt"}, {"precision": "fp16"}, {"backend": "tensorrt", "device": "cuda"}):
        with pytest.raises(DeviceError, match="cannot be had: no NVIDIA driver found"):
            choose(path, **asked)


def test_tensorrt_is_for_gpus():
    for asked, setting in (
        ({"backend": "tensorrt"}, "backend='tensorrt'"),
        ({"precision": "fp16"}, "'fp16'"),
    ):
        with pytest.raises(DeviceError, match=f"device 'cpu' cannot be had with .*{setting}.* for GPUs"):
            choice.choose(machine(), device="cpu", **asked)


def test_a_plan_of_another_precision_than_asked_for_is_not_run_in_silence(path):
    assert choose(path, precision="fp32").plan == TARGET
    with pytest.raises(DeviceError, match=r"computes in fp32, and precision='fp16' was asked for; use"):
        choose(path, precision="fp16")
    for backend in ("onnxruntime", "openvino"):
        with pytest.raises(
            DeviceError, match=f"'fp16' cannot be had from backend '{backend}'; use backend='t"
        ):
            choose(path, precision="fp16", backend=backend)


def test_a_plan_in_fp16_is_taken_by_itself_and_told(gpu, tmp_path):
    members = tiny_engine.members()
    members |= {f"{name}.fp16.onnx": members[f"{name}.onnx"] for name in ("encoder", "generator")}
    path = tiny_engine.write_raw(tmp_path / "h.engine", members, precision="fp16")
    fake_gpu.build.build(fake_gpu.build.BuildRequest(engine=path, options=fake_gpu.BuildOptions()))
    assert [choose(path, precision=asked).precision for asked in ("auto", "fp16")] == ["fp16", "fp16"]
    asked = choose(path, precision="fp32")
    assert (asked.backend, asked.precision) == ("onnxruntime", "fp32")
    assert "computes in fp16, and precision='fp32' was asked for" in asked.reason


def test_a_missing_library_is_named_where_there_is_a_plan_for_it(path, monkeypatch):
    for name, words, install in (
        ("tensorrt", "TensorRT cannot be", "'psp_rt[tensorrt]'"),
        ("cuda.bindings.driver", "cuda-bindings cannot be", "'cuda-bindings>=12.6.1,<14'"),
    ):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, name, None)
            chosen = choose(path)
            assert chosen.backend == "onnxruntime"
            assert words in chosen.reason
            assert f"pip install {install}" in chosen.reason


def test_without_a_driver_tensorrt_is_not_imported(monkeypatch):
    monkeypatch.setattr("psp_rt.hardware.tensorrt.load_library", None)
    assert probe_tensorrt(Driver(problem="no NVIDIA driver found"), 0).problem == "no NVIDIA driver found"


def test_a_damaged_record_is_an_error(gpu, path, tmp_path):
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if name != "manifest.json"}
    files[f"plans/{TARGET}/record.json"] = json.dumps({"machine": 1}).encode()
    damaged = tiny_engine.write_raw(tmp_path / "d.engine", files)
    with pytest.raises(FormatError, match="build the plan again"):
        choose(damaged)


# The commands.


def test_info_and_doctor_show_the_plans(path, monkeypatch):
    told = CliRunner().invoke(main, ["info", str(path)]).output
    assert "\nTensorRT plans\n" in told
    assert " fp32, batches 1 to 4, for NVIDIA H200 of compute capability 9.0" in told
    told = CliRunner().invoke(main, ["doctor", str(path)]).output
    assert f"plan             {TARGET}: runs here\n" in told
    assert "runs on cuda:0 with tensorrt, fp32: loaded and first picture made in" in told
    fake_gpu.install(monkeypatch, "11.0.0.114")
    told = CliRunner().invoke(main, ["doctor", str(path)]).output
    assert f"plan             {TARGET}: it was built for NVIDIA H200" in told


def test_doctor_misses_the_bindings_that_tensorrt_needs():
    found = machine()
    found.driver = DRIVER
    (line,) = doctor.faults(found, {"tensorrt": "10.13"})
    assert line == "TensorRT runs plans only with cuda-bindings: pip install 'cuda-bindings>=12.6.1,<14'"
    assert doctor.faults(found, {"tensorrt": "10.13", "cuda-bindings": "13.5"}) == []
