"""Time and memory against batch, clones and output size."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks import latency, session
from benchmarks.contenders.all import ENTRIES
from benchmarks.contenders.contender import Entry
from benchmarks.contenders.translator import PspRt
from benchmarks.measure import fresh, limits, stages, timing
from benchmarks.measure.timing import ContenderRun, Timing
from benchmarks.report import statistics
from benchmarks.workloads import models, workload

QUICK = ["--quick", "--threads", "1", "--contenders", "psp_rt-cpu"]
Command = Callable[..., tuple[int, dict]]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Command:
    """Run the command, its processes replaced by figures, and return status and JSON."""
    monkeypatch.setattr(workload, "CACHE", tmp_path_factory.getbasetemp() / "engines")
    monkeypatch.setattr(session, "_fresh_runs", lambda workload: [])
    monkeypatch.setattr(fresh, "measure_contender", alone)

    def run(*arguments: str) -> tuple[int, dict]:
        path = tmp_path / "result.json"
        status = latency.main([*arguments, "--json", str(path)])
        return status, json.loads(path.read_text())

    return run


def alone(entry: Entry | str, workload: object = None, *, batch: int = 1, clones: int = 1) -> ContenderRun:
    """Return a run that takes 100 MiB, and 10 for each picture or clone."""
    name = entry if isinstance(entry, str) else entry.name
    peak = 100 + 10.0 * batch * clones
    return ContenderRun(
        contender=name,
        batch=batch,
        clones=clones,
        open_s=1,
        first_run_s=1,
        second_run_s=1,
        peak_mib=peak,
        device_mib=None,
    )


# The line.


def test_a_line_through_points_on_a_line_is_that_line_and_leaves_nothing():
    line = statistics.fit([1, 2, 4, 8], [5, 7, 11, 19])
    assert (line.fixed, line.slope) == (pytest.approx(3), pytest.approx(2))
    assert line.residual == pytest.approx(0, abs=1e-9)
    assert line(100) == pytest.approx(203)


def test_the_residual_is_what_the_line_leaves_over_its_degrees_of_freedom():
    line = statistics.fit([0, 1, 2], [0, 3, 0])  # the line is flat at 1
    assert (line.fixed, line.slope) == (pytest.approx(1), pytest.approx(0, abs=1e-9))
    assert line.residual == pytest.approx(6**0.5)


def test_two_points_have_no_line_to_judge_them_by():
    assert statistics.fit([1, 2], [1, 2]) is None
    assert statistics.fit([1, 1, 2], [1, 1.1, 2]) is None


# The curves.


def timed(stage: str, batch: int, milliseconds: float, contender: str = "mine") -> Timing:
    return Timing(contender=contender, stage=stage, batch=batch, images=batch, samples_ms=[milliseconds])


def test_time_and_memory_of_batches_have_a_fixed_part_and_a_slope():
    timings = [timed("end to end", batch, 30 + 20 * batch) for batch in (1, 2, 4)]
    runs = [alone("mine", batch=batch) for batch in (1, 2, 4)]
    times, peaks = statistics.of_model("m", timings, runs)
    assert (times.what, times.points) == ("end to end", ((1, 50), (2, 70), (4, 110)))
    assert (times.line.fixed, times.line.slope) == (pytest.approx(30), pytest.approx(20))
    assert (peaks.what, peaks.unit, peaks.line.slope) == ("peak memory", "MiB", pytest.approx(10))


def test_clones_are_counted_by_the_time_for_one_picture_of_each():
    timings = [
        Timing(contender="mine", stage=stages.clones_stage(k), batch=1, images=2 * k, samples_ms=[80 * k])
        for k in (1, 2, 4)
    ]
    (curve,) = statistics.of_model("m", timings, [])
    assert curve.axis == "clones"
    assert curve.points == ((1, 40), (2, 80), (4, 160))
    assert 1000 / curve.line.slope == pytest.approx(25)  # pictures a second, however many clones there are


def test_output_sizes_are_compared_within_one_kind_of_encoder():
    models = [
        statistics.Sized(
            kind=kind,
            megapixels=megapixels,
            timings=[timed("generate", 1, 5 + 100 * megapixels)],
            alone=[alone("mine")],
        )
        for kind, megapixels in (("psp", 1.0), ("psp", 0.25), ("w", 1.0), ("psp", 4.0))
    ]
    generate, peak = statistics.of_sizes(models)
    assert (generate.model, generate.what) == ("psp", "generate")
    assert [x for x, _ in generate.points] == [0.25, 1.0, 4.0]
    assert (generate.line.fixed, generate.line.slope) == (pytest.approx(5), pytest.approx(100))
    assert peak.what == "peak memory"


# The clones.


def test_clones_translate_at_the_same_time_and_each_picture_is_timed(monkeypatch: pytest.MonkeyPatch):
    at_work, most = [], []

    class Slow(PspRt):
        def __init__(self) -> None:
            pass

        def clone(self) -> "Slow":
            return Slow()

        def translate(self, pictures: list[Path]) -> list[object]:
            at_work.append(self)
            most.append(len(at_work))
            timing.time.sleep(0.05)
            at_work.remove(self)
            return []

        def close(self) -> None:
            pass

    crew = stages.ClonePool(Slow(), 3, [Path("a.png"), Path("b.png")])
    crew.run()
    crew.close()
    assert max(most) == 3
    assert len(crew.latest_ms) == 3 * stages.RUNS_EACH
    assert all(milliseconds >= 50 for milliseconds in crew.latest_ms)


# The command.


def test_scaling_measures_batches_and_clones_and_writes_lines(
    command: Command, capsys: pytest.CaptureFixture, tmp_path: Path
):
    status, found = command(*QUICK, "--scaling")
    assert status == 0
    times = {(curve["axis"], curve["what"]): curve for curve in found["scaling"]}
    assert times.keys() == {
        (axis, what) for axis in ("batch", "clones") for what in ("end to end", "peak memory")
    }
    assert [x for x, _ in times["batch", "end to end"]["points"]] == [1, 2, 4, 8]
    assert [x for x, _ in times["clones", "end to end"]["points"]] == [1, 2, 4]
    assert times["batch", "peak memory"]["line"]["slope"] == pytest.approx(10)
    assert times["batch", "end to end"]["line"]["residual"] >= 0
    timings = {timing["stage"]: timing for timing in found["models"][0]["timings"]}
    assert timings["4 clones, each"]["runs"] == 2 * 4 * stages.RUNS_EACH  # rounds, clones, pictures of each
    assert timings["4 clones"]["images"] == 4 * stages.RUNS_EACH
    shown = capsys.readouterr().out
    assert "psp-tiny: against batch" in shown
    assert "psp-tiny: against clones at work at once" in shown


def test_clones_alone_are_measured_without_larger_batches(command: Command):
    status, found = command(*QUICK, "--clones", "1", "2")
    assert status == 0
    assert {timing["batch"] for timing in found["models"][0]["timings"]} == {1}
    assert {timing["stage"] for timing in found["models"][0]["timings"]} >= {"1 clone", "2 clones"}
    assert all(curve["line"] is None for curve in found["scaling"])  # through two points every line fits


def test_what_does_not_fit_into_the_memory_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch, command: Command, capsys: pytest.CaptureFixture
):
    tiny = models.tiny("psp")
    engine = limits.Footprint.of_engine(workload.cached_engine(tiny, lambda step: None))
    drawn = limits.Footprint.of_architecture(tiny)
    free = [max(footprint.needed_bytes(batch=4) for footprint in (engine, drawn))]
    real = session.admit

    def admit(*arguments: object) -> object:
        admitted = real(*arguments)  # its memory is taken from now on
        free[0] = engine.needed_bytes(batch=4, opened=True)
        assert 0 < free[0] < engine.needed_bytes(batch=8, opened=True)
        return admitted

    monkeypatch.setattr(session, "admit", admit)
    monkeypatch.setattr(limits, "available_bytes", lambda: free[0])
    status, found = command(*QUICK, "--scaling")
    (model,) = found["models"]
    assert status == 0
    assert [line.partition(":")[0] for line in model["left_out"]] == ["batch 8"]
    assert "GiB of memory" in model["left_out"][0]
    assert max(timing["batch"] for timing in model["timings"]) == 4
    assert "Scaling: left out" in capsys.readouterr().out


def test_a_process_that_dies_leaves_a_note_and_the_other_points(
    monkeypatch: pytest.MonkeyPatch, command: Command
):
    def dying(entry: Entry, workload: object, *, batch: int, clones: int) -> ContenderRun:
        if batch == 2:
            raise subprocess.CalledProcessError(-9, "python")
        return alone(entry, batch=batch, clones=clones)

    monkeypatch.setattr(fresh, "measure_contender", dying)
    status, found = command(*QUICK, "--scaling")
    (model,) = found["models"]
    assert status == 0
    assert {run["batch"] for run in model["alone"]} == {1, 4, 8}
    assert "status -9" in model["left_out"][0]


def test_an_interrupt_of_the_scaling_keeps_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, command: Command
):
    def interrupted(entry: Entry, workload: object, *, batch: int, clones: int) -> ContenderRun:
        if batch == 4:
            raise KeyboardInterrupt
        return alone(entry, batch=batch, clones=clones)

    monkeypatch.setattr(fresh, "measure_contender", interrupted)
    status, found = command(*QUICK, "--scaling")
    assert status == 130
    assert not found["complete"]
    assert [run["batch"] for run in found["models"][0]["alone"]] == [1, 2]
    assert {curve["what"] for curve in found["scaling"]} == {"end to end", "peak memory"}


def test_an_interrupt_among_clones_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch, command: Command):
    runs = iter(range(10**6))
    run = stages.ClonePool.run

    def interrupted(crew: stages.ClonePool) -> None:
        if next(runs) == 5:  # three pools in the warm-up, then in the first round
            raise KeyboardInterrupt
        run(crew)

    monkeypatch.setattr(stages.ClonePool, "run", interrupted)
    status, found = command(*QUICK, "--scaling")
    assert status == 130
    assert sum("clones, each" in timing["stage"] for timing in found["models"][0]["timings"]) >= 1


def test_a_contender_alone_is_run_as_its_users_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workload, "CACHE", tmp_path)
    measured = workload.drawn_workload(models.tiny("psp"), batch=2, threads=1, report=lambda step: None)
    (entry,) = (entry for entry in ENTRIES if entry.name == "psp_rt-cpu")
    one, two = (fresh.measure_contender(entry, measured, batch=1, clones=clones) for clones in (1, 2))
    assert (one.contender, one.clones, two.clones) == ("psp_rt-cpu", 1, 2)
    assert np.all(np.array([one.open_s, one.first_run_s, one.second_run_s, one.peak_mib]) > 0)
    assert one.device_mib is None
