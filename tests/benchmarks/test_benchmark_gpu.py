"""Contenders on a GPU, as far as a machine without one can show them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import latency, session
from benchmarks.contenders.all import ENTRIES
from benchmarks.contenders.pytorch import PyTorchOnGpu, open_pytorch
from benchmarks.contenders.translator import BareSessions
from benchmarks.measure import fresh, stages
from benchmarks.workloads import models, workload
from psp_rt import EngineFile
from psp_rt.engine.plans import records
from psp_rt.hardware.probe import Driver
from tests.models import tiny_engine
from tests.stand_ins import gpu as fake_gpu

ON_GPU = [entry for entry in ENTRIES if entry.device == "cuda"]


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> workload.Workload:
    monkeypatch.setattr(workload, "CACHE", tmp_path)
    return workload.drawn_workload(models.tiny("psp"), batch=2, threads=1, report=lambda step: None)


def entry(name: str) -> session.Entry:
    return next(entry for entry in ENTRIES if entry.name == name)


def test_every_contender_on_a_gpu_says_that_there_is_none_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for where in (
        "psp_rt.hardware.choose",
        "benchmarks.workloads.workload",
        "benchmarks.contenders.pytorch",
    ):
        monkeypatch.setattr(f"{where}.probe_driver", lambda: Driver(problem="no NVIDIA driver found"))
    monkeypatch.setattr(workload, "CACHE", tmp_path)
    monkeypatch.setattr(session, "_fresh_runs", lambda workload: [])
    monkeypatch.setattr(fresh, "can_run_alone", lambda entry: False)
    output, names = tmp_path / "a.json", [entry.name for entry in ON_GPU]
    status = latency.main(["--quick", "--threads", "1", "--json", str(output), "--contenders", *names])
    (model,) = json.loads(output.read_text())["models"]
    assert status == 0
    assert [standing["name"] for standing in model["contenders"]] == names
    assert {standing["status"] for standing in model["contenders"]} == {"unavailable"}
    assert all("no NVIDIA driver found" in standing["reason"] for standing in model["contenders"])


@pytest.mark.parametrize("problem", ["", "no NVIDIA driver found"])
def test_by_default_a_gpu_takes_part_where_there_is_one(problem: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(latency, "probe_driver", lambda: Driver(gpus=("NVIDIA H200",), problem=problem))
    chosen, not_tried = latency.chosen_contenders(latency.parser().parse_args([]))
    assert ("psp_rt-tensorrt-fp16" in chosen) == (not problem)
    assert ("psp_rt-tensorrt-fp16" in not_tried) == bool(problem)
    assert "pytorch-compiled-cuda-fp16" not in chosen


def test_torch_compile_is_added_on_every_device(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(latency, "probe_driver", lambda: Driver(gpus=("NVIDIA H200",)))
    chosen, _ = latency.chosen_contenders(latency.parser().parse_args(["--compile"]))
    assert {"pytorch-compiled", "pytorch-compiled-cuda-fp16"} <= set(chosen)


def on_the_cpu(measured: workload.Workload) -> PyTorchOnGpu:
    """Return what would run on a GPU, on the CPU."""
    assert measured.model is not None
    return PyTorchOnGpu(measured.input, open_pytorch(measured).networks, device="cpu")


def test_the_stages_on_a_gpu_make_the_pictures_of_the_whole(drawn: workload.Workload):
    contender, images = on_the_cpu(drawn), drawn.images(2)
    parts = contender.device_stages(images, 1, 0)
    assert list(parts) == ["upload", "encode", "style-mix", "generate", "download"]
    np.testing.assert_array_equal(parts["encode"]().numpy(), contender.encode(images))
    np.testing.assert_array_equal(parts["download"](), np.stack(contender.translate(drawn.pictures)))
    np.testing.assert_array_equal(
        parts["style-mix"]().numpy(), contender.with_style(contender.encode(images), 1, 0)
    )


def test_gpu_stages_are_timed_by_its_clock_and_the_whole_by_the_host(
    drawn: workload.Workload, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stages, "event_ms", lambda run: 123.0)
    calls = stages.all_calls({"there": on_the_cpu(drawn)}, drawn, [1])
    clocks = {call.timing.stage: call.clock(lambda: None) for call in calls}
    assert [stage for stage, time in clocks.items() if time == 123] == [
        "upload",
        "encode",
        "style-mix",
        "generate",
        "download",
    ]
    assert clocks["end to end"] < 123


def test_styles_that_are_mixed_are_compared_before_they_are_timed(drawn: workload.Workload):
    class OtherStyle(BareSessions):
        def with_style(self, codes: np.ndarray, seed: int, first_row: int) -> np.ndarray:
            return super().with_style(codes, seed + 1, first_row)

    other = replace(entry("sessions-cpu"), open=OtherStyle.open)
    standing, contender = session.try_contender(
        other, drawn, stages.expected_results(open_pytorch(drawn), drawn)
    )
    assert standing.status == "wrong"
    assert contender is None
    drawn.close()


# With stand-ins for the driver and TensorRT.


def test_psp_rt_on_tensorrt_is_compared_and_admitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_gpu.install(monkeypatch)
    monkeypatch.setattr(workload, "probe_driver", lambda: fake_gpu.DRIVER)
    monkeypatch.setattr(workload, "CACHE", tmp_path)
    engine = fake_gpu.engine_with_plans(tmp_path / "a.engine")
    given = workload.given_workload(engine, None, batch=2, threads=1)
    expected = stages.expected_results(entry("sessions-cpu").open(given), given)
    standing, contender = session.try_contender(entry("psp_rt-tensorrt"), given, expected)
    assert (standing.status, standing.reason) == ("timed", "")
    assert contender is not None
    contender.close()
    half, _ = session.try_contender(entry("psp_rt-tensorrt-fp16"), given, expected)
    assert half.status == "unavailable"
    assert "computes in fp32, and precision='fp16' was asked for" in half.reason
    given.close()


def test_an_engine_without_plans_says_how_to_build_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_gpu.install(monkeypatch)
    monkeypatch.setattr(workload, "probe_driver", lambda: fake_gpu.DRIVER)
    monkeypatch.setattr(workload, "CACHE", tmp_path)
    given = workload.given_workload(tiny_engine.build(tmp_path / "a.engine"), None, batch=1, threads=1)
    expected = stages.expected_results(entry("sessions-cpu").open(given), given)
    standing, _ = session.try_contender(entry("psp_rt-tensorrt"), given, expected)
    assert standing.status == "unavailable"
    assert "psp-rt build a.engine" in standing.reason
    given.close()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_plans_of_a_drawn_model_are_built_once_beside_its_engine(
    precision: str, drawn: workload.Workload, monkeypatch: pytest.MonkeyPatch
):
    before = drawn.engine.read_bytes()
    fake_gpu.install(monkeypatch)
    monkeypatch.setattr(workload, "probe_driver", lambda: fake_gpu.DRIVER)
    built: list[Path] = []
    build: Callable[..., object] = workload.build
    monkeypatch.setattr(workload, "build", lambda request: (built.append(request.engine), build(request)))
    engine = drawn.with_plans(precision)
    assert drawn.with_plans(precision) == engine
    assert built == [engine]
    assert drawn.engine.read_bytes() == before
    with EngineFile.open(engine) as file:
        (record,) = records(file).values()
    assert (record.precision, record.max_batch) == (precision, 4)
