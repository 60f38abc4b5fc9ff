"""The benchmark compares like with like, counts right, and keeps what it measured."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import latency, session
from benchmarks.contenders.all import ENTRIES
from benchmarks.contenders.contender import Entry
from benchmarks.contenders.translator import BareSessions
from benchmarks.measure import fresh, limits, stages, timing
from benchmarks.measure.limits import PRECISIONS, PRODUCTS, Ceilings, Peak
from benchmarks.measure.timing import Call, Timing
from benchmarks.report import paper
from benchmarks.workloads import models, workload
from benchmarks.workloads.models import in_original_form
from export.engine import export_engine
from export.graphs.networks import GeneratorGraph
from export.inspect.layers import count_macs
from psp_rt import EngineFile
from trainer import checkpoint
from trainer.networks import Translation
from trainer.networks.generator import ModulatedConv

ROOT = Path(__file__).parents[2]
KINDS = ("psp", "w", "naive_w+", "e4e")
QUICK = ["--quick", "--threads", "1"]
CONTENDERS = ["--contenders", "psp_rt-cpu", "pytorch-original"]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cache_of_the_tests(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "CACHE", cache)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, dict]]:
    """Run the command in this process, without processes of its own, and return status and JSON."""
    monkeypatch.setattr(session, "_fresh_runs", lambda workload: [])
    monkeypatch.setattr(fresh, "can_run_alone", lambda entry: False)

    def run(*arguments: str) -> tuple[int, dict]:
        path = tmp_path / "result.json"
        status = latency.main([*arguments, "--json", str(path)])
        return status, json.loads(path.read_text())

    return run


def result(path: Path, scale: float, noise: float = 0.01) -> Path:
    """Write a result in which every call takes ``scale`` times 100 ms."""
    samples = 100 * scale * (1 + noise * np.random.default_rng(0).standard_normal(20))
    timings = [
        {"contender": "psp_rt-cpu", "stage": stage, "batch": 1, "samples_ms": samples.tolist()}
        for stage in ("encode", "generate")
    ]
    content = {
        "format": "psp_rt.latency",
        "version": 1,
        "complete": True,
        "provenance": {"cpu": "a", "threads": "1"},
        "models": [{"name": "m", "timings": timings}],
    }
    path.write_text(json.dumps(content))
    return path


# The original formulation.


@torch.no_grad()
def test_the_original_formulation_computes_what_our_generator_does():
    generator = models.draw(models.tiny("psp")).generator
    codes = torch.randn(3, generator.config.num_styles, generator.config.style_dim)
    torch.testing.assert_close(in_original_form(generator)(codes), generator(codes), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("demodulate", [False, True])
@torch.no_grad()
def test_every_original_convolution_computes_what_ours_does(up: bool, demodulate: bool):
    ours = torch.nn.Sequential(ModulatedConv(6, 5, 3, 8, up=up, demodulate=demodulate))
    x, style = torch.randn(3, 6, 7, 7), torch.randn(3, 8)
    original = in_original_form(ours)  # it takes any module
    assert not isinstance(original[0], ModulatedConv)
    torch.testing.assert_close(original[0](x, style), ours[0](x, style), rtol=1e-4, atol=1e-4)


def test_the_original_formulation_shares_weights_and_changes_nothing():
    generator = models.draw(models.tiny("psp")).generator
    original = in_original_form(generator)
    ours = {tensor.data_ptr() for tensor in generator.state_dict().values()}
    assert {tensor.data_ptr() for tensor in original.state_dict().values()} <= ours
    assert isinstance(generator.conv1.conv, ModulatedConv)


# The model.


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_drawn_pictures_are_not_flat_and_depend_on_the_input(kind: str):
    model = models.draw(models.tiny(kind))
    translation = Translation(model.encoder, model.generator, model.latent_avg)
    pictures = translation(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    assert pictures.std() > 0.2
    assert (pictures.abs() > 1).float().mean() < 0.2
    assert (pictures[0] - pictures[1]).abs().mean() > 0.01


def test_drawing_a_model_twice_gives_the_same_weights():
    first, second = (models.draw(models.tiny("psp")) for _ in range(2))
    torch.testing.assert_close(first.encoder.state_dict(), second.encoder.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(first.generator.state_dict(), second.generator.state_dict(), rtol=0, atol=0)


def test_an_engine_is_made_once_and_again_when_the_code_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(workload, "CACHE", tmp_path)
    steps: list[str] = []
    first = workload.cached_engine(models.tiny("w"), steps.append)
    made_with = len(steps)
    assert workload.cached_engine(models.tiny("w"), steps.append) == first
    assert len(steps) == made_with
    monkeypatch.setattr(workload, "SOURCES", ("export",))
    assert workload.cached_engine(models.tiny("w"), steps.append) != first
    assert len(list(tmp_path.glob("*.engine"))) == 1  # the outdated one would fill the disk


# Counting.


def test_a_contender_is_held_to_the_ceiling_of_its_own_precision():
    ceilings = Ceilings(threads=1, side=1000, copied_bytes=4)
    for call, milliseconds in zip(ceilings.calls(), (2304, 230.4, 1), strict=True):  # 1 and 10 GMAC/s
        call.timing.samples_ms.append(milliseconds)
    timings = [Timing(contender=name, stage="encode", batch=1, images=1) for name in ("exact", "close")]
    for timed in timings:
        timed.samples_ms.append(3000)
    works = {("encoder", 1): limits.Work(macs=10**9, weight_bytes=0)}
    peaks = {"exact": ceilings.peak("fp32"), "close": ceilings.peak("bf16")}
    exact, close = limits.distances(timings, works, peaks)
    assert (exact.bound_ms, close.bound_ms) == (pytest.approx(1000), pytest.approx(100))


def small_graph() -> onnx.ModelProto:
    """A grouped convolution, a transposed one, Gemm and MatMul, behind a shape that the graph computes."""
    weights = {
        "conv": (8, 2, 3, 3),
        "up": (8, 5, 3, 3),
        "gemm": (7, 500),
        "matmul": (7, 11),
        "start": (1, 4, 9, 9),
    }
    constants = [
        helper.make_tensor(name, TensorProto.FLOAT, shape, np.zeros(shape, np.float32))
        for name, shape in weights.items()
    ]
    constants += [
        helper.make_tensor("zero", TensorProto.INT64, [1], [0]),
        helper.make_tensor("rest", TensorProto.INT64, [3], [4, 9, 9]),
        helper.make_tensor("flat", TensorProto.INT64, [2], [-1, 500]),
    ]
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Concat", ["batch", "rest"], ["wanted"], axis=0),
        helper.make_node("Expand", ["start", "wanted"], ["started"]),
        helper.make_node("Conv", ["started", "conv"], ["a"], strides=[2, 2], group=2),  # [N, 8, 4, 4]
        helper.make_node("ConvTranspose", ["a", "up"], ["b"], strides=[2, 2], output_padding=[1, 1]),
        helper.make_node("Reshape", ["b", "flat"], ["c"]),  # [N, 5 * 10 * 10]
        helper.make_node("Gemm", ["c", "gemm"], ["d"], transB=1),
        helper.make_node("MatMul", ["d", "matmul"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 11])
    graph = helper.make_graph(nodes, "small", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.parametrize("batch", [1, 3])
def test_multiplications_are_counted_as_by_hand(batch: int):
    convolution = 8 * 4 * 4 * (2 * 3 * 3)
    transposed = 8 * 4 * 4 * (5 * 3 * 3)
    assert count_macs(small_graph(), batch=batch) == batch * (convolution + transposed + 500 * 7 + 7 * 11)


def test_a_graph_of_unknown_shape_is_not_counted_too_low():
    graph = small_graph()
    graph.graph.node[0].CopyFrom(helper.make_node("NonZero", ["x"], ["shape"]))
    with pytest.raises(ValueError, match="cannot be counted"):
        count_macs(graph, batch=1)


def test_the_count_of_a_generator_is_the_one_of_torch():
    tiny = models.tiny("psp")
    engine = workload.cached_engine(tiny, lambda step: None)
    with EngineFile.open(engine) as file:
        counted = limits.graph_work(file, "generator", batch=2).macs
    codes = torch.zeros(2, tiny.generator.num_styles, tiny.generator.style_dim)
    graph = GeneratorGraph(models.draw(tiny).generator)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        graph(codes, codes, torch.zeros(codes.shape[:2]))
    assert counted == counter.get_total_flops() / 2


def end_to_end(contender: str, milliseconds: float) -> Timing:
    return Timing(contender=contender, stage="end to end", batch=1, images=1, samples_ms=[milliseconds])


def test_figures_are_scaled_to_the_papers_card_by_precision():
    p40 = 11.76e12 / 2  # multiplications a second
    peaks = {
        name: Peak(macs_per_s=times * p40, bytes_per_s=1) for name, times in (("half", 0.5), ("thrice", 3))
    }
    half, thrice = paper.ours("psp", [end_to_end("half", 100), end_to_end("thrice", 100)], peaks, "here")
    assert (half.seconds, thrice.seconds) == (0.1, 0.1)
    assert (half.p40_seconds, thrice.p40_seconds) == (pytest.approx(0.05), pytest.approx(0.3))


def test_each_encoder_of_ours_stands_below_the_papers_same_one():
    peaks = {"mine": Peak(macs_per_s=1, bytes_per_s=1)}
    own = [
        row
        for kind in ("psp", "e4e", "w")
        for row in paper.ours(kind, [end_to_end("mine", 1)], peaks, "here")
    ]
    shown = [(row.method, row.contender) for row in paper.side_by_side(own)]
    assert shown == [
        ("ALAE", ""),
        ("IDInvert", ""),
        ("W", ""),
        ("W", "mine"),
        ("naive W+", ""),
        ("pSp", ""),
        ("pSp", "mine"),
        ("e4e", "mine"),
    ]


# Timing.


def test_every_call_runs_once_a_round_and_no_run_is_left_out():
    order: list[str] = []
    calls = [
        Call(
            timing=Timing(contender=name, stage="s", batch=1, images=1),
            run=lambda name=name: order.append(name),
        )
        for name in "abc"
    ]
    timing.measure(calls, rounds=5, warmup=2, progress=lambda what, fraction: None)
    rounds = [order[at : at + 3] for at in range(0, 21, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1  # or one would always follow the same other
    assert [len(call.timing.samples_ms) for call in calls] == [5, 5, 5]


def test_percentiles_and_throughput_are_those_of_all_runs():
    summary = Timing(contender="a", stage="s", batch=4, images=4, samples_ms=[10, 10, 10, 50]).summary()
    assert (summary["p50_ms"], summary["mean_ms"], summary["images_per_s"]) == (10, 20, 200)
    assert summary["p99_ms"] == pytest.approx(48.8)


# Agreement.


def other_pictures(change: Callable[[np.ndarray], np.ndarray]) -> Entry:
    """Return a contender that computes something else."""

    class Other(BareSessions):
        def generate(self, codes: np.ndarray) -> np.ndarray:
            return change(super().generate(codes))

    return Entry(name="other", what="", device="cpu", precision="fp32", open=Other.open)


def test_a_contender_with_other_pictures_is_wrong_and_not_timed(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., tuple[int, dict]]
):
    monkeypatch.setattr(session, "ENTRIES", (*ENTRIES, other_pictures(lambda pictures: 255 - pictures)))
    monkeypatch.setattr(latency, "ENTRIES", session.ENTRIES)
    status, found = command(*QUICK, "--contenders", "other", "psp_rt-cpu")
    (model,) = found["models"]
    standings = {standing["name"]: standing for standing in model["contenders"]}
    assert status == 1
    assert standings["other"]["status"] == "wrong"
    assert "PSNR" in standings["other"]["reason"]
    assert standings["psp_rt-cpu"]["status"] == "timed"
    assert {timing["contender"] for timing in model["timings"]} == {"machine", "all", "psp_rt-cpu"}


def test_fp32_pictures_may_differ_by_one_level_and_others_by_40_db():
    pictures = np.full((1, 8, 8, 3), 100, np.uint8)
    one, two, many = (pictures.copy() for _ in range(3))
    one[0, 0, 0, 0] += 1
    two[0, 0, 0, 0] += 2
    many += 4
    assert stages.compare_pictures(one, pictures).fault("fp32") == ""
    assert "2 levels" in stages.compare_pictures(two, pictures).fault("fp32")
    assert stages.compare_pictures(two, pictures).fault("fp16") == ""
    assert "PSNR is 36.1 dB" in stages.compare_pictures(many, pictures).fault("fp16")


def test_one_wrong_picture_in_a_batch_is_enough():
    pictures = np.full((50, 8, 8, 3), 100, np.uint8)
    found = pictures.copy()
    found[7] += 5
    assert "PSNR" in stages.compare_pictures(found, pictures).fault("fp16")


# The command.


def test_quick_runs_through_the_command_and_writes_every_field(tmp_path: Path):
    files = ["--json", str(tmp_path / "a.json"), "--markdown", str(tmp_path / "a.md")]
    ran = subprocess.run(
        [sys.executable, "benchmarks/latency.py", *QUICK, "--batch", "1", "2", *CONTENDERS, *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["complete"]
    assert found["provenance"].keys() >= {"cpu", "cpus", "threads", "commit", "command", "date", "torch"}
    (model,) = found["models"]
    assert {standing["status"] for standing in model["contenders"]} == {"timed"}
    stages = {(timing["stage"], timing["batch"]) for timing in model["timings"]}
    each = ("read", "encode", "style-mix", "generate", "end to end")
    products = [PRODUCTS[precision] for precision in PRECISIONS["cpu"]]
    once = ("1 mixed", "4 mixed", "encode, generate 4", "4 runs", "copy", *products)
    assert stages == {(stage, batch) for stage in each for batch in (1, 2)} | {(stage, 1) for stage in once}
    for figures in model["timings"]:
        assert len(figures["samples_ms"]) == figures["runs"] == 2
        assert figures["p50_ms"] <= figures["p90_ms"] <= figures["p99_ms"]
    assert {(entry["graph"], entry["batch"]) for entry in model["work"]} == {
        (graph, batch) for graph in ("encoder", "generator") for batch in (1, 2)
    }
    assert all(distance["ratio"] > 1 for distance in model["limit"])  # nothing is faster than the limit
    assert model["ceilings"]["gmacs_per_s"] > 0
    assert model["ceilings"]["bf16_gmacs_per_s"] > 0
    assert model["gpu_ceilings"] is None
    assert 0 < model["fresh"][0]["peak_open_mib"] <= model["fresh"][0]["peak_mib"]
    alone = {(run["contender"], run["batch"]): run for run in model["alone"]}
    assert alone.keys() == {(name, batch) for name in CONTENDERS[1:] for batch in (1, 2)}
    assert (
        alone["pytorch-original", 1]["peak_mib"] > alone["psp_rt-cpu", 1]["peak_mib"] > 0
    )  # it imports torch
    assert alone["psp_rt-cpu", 1]["open_s"] > 0
    assert alone["pytorch-original", 1]["open_s"] is None  # drawn: nothing was opened
    medians = {(row["contender"], row["batch"]): row for row in model["stages"]}
    assert medians["psp_rt-cpu", 2]["upload"] is None
    assert 0 < medians["psp_rt-cpu", 2]["generate"] < medians["psp_rt-cpu", 2]["end to end"]
    assert model["engine_bytes"] > 0
    assert "pytorch-original / psp_rt-cpu: end to end, batch 1" in model["ratios"]
    assert [row["seconds"] for row in found["paper"]] == [0.207, 0.032, 0.063, 0.063, 0.106]
    assert "| end to end | 2 | psp_rt-cpu |" in (tmp_path / "a.md").read_text()
    assert "times the bound" in ran.stdout
    assert re.search(r"psp_rt-cpu +1 +[\d.]+ +none ", ran.stdout)  # on the CPU nothing is uploaded


@pytest.mark.parametrize("with_checkpoint", [False, True])
def test_a_users_engine_is_measured_with_its_checkpoint_in_pytorch(
    tmp_path: Path, command: Callable[..., tuple[int, dict]], with_checkpoint: bool
):
    model = models.draw(models.tiny("psp"))
    translation = Translation(model.encoder, model.generator, model.latent_avg)
    saved = checkpoint.Checkpoint(task="test", input_kind="rgb", labels=None, model=translation)
    checkpoint.save(tmp_path / "a.pt", saved)
    export_engine(model, tmp_path / "a.engine")
    extra = ["--checkpoint", str(tmp_path / "a.pt")] if with_checkpoint else []
    status, found = command(str(tmp_path / "a.engine"), *QUICK, *extra)
    assert status == 0
    standings = {standing["name"]: standing for standing in found["models"][0]["contenders"]}
    assert standings["psp_rt-cpu"]["status"] == "timed"
    assert standings["pytorch-original"]["status"] == ("timed" if with_checkpoint else "unavailable")
    assert "cuda" not in " ".join(standings)  # there is no GPU, and nobody asked for one
    assert "psp_rt-tensorrt-fp16" in found["models"][0]["not_tried"]
    assert with_checkpoint or "add --checkpoint FILE" in standings["pytorch-original"]["reason"]
    assert str(tmp_path) not in json.dumps(found)  # results are published


def test_an_interrupt_keeps_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., tuple[int, dict]]
):
    asked = iter(range(10**6))

    class Interrupted(BareSessions):
        def encode(self, images: np.ndarray) -> np.ndarray:
            if next(asked) == 4:  # comparing, preparing, two calls of the warm-up, then in the first round
                raise KeyboardInterrupt
            return super().encode(images)

    entry = Entry(name="interrupted", what="", device="cpu", precision="fp32", open=Interrupted.open)
    monkeypatch.setattr(session, "ENTRIES", (*ENTRIES, entry))
    monkeypatch.setattr(latency, "ENTRIES", session.ENTRIES)
    status, found = command(*QUICK, "--contenders", "interrupted", "psp_rt-cpu")
    assert status == 130
    assert not found["complete"]
    assert found["models"][0]["timings"]


def test_a_model_that_does_not_fit_into_the_memory_is_skipped_and_says_so(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., tuple[int, dict]], capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(limits, "available_bytes", lambda: 2**30)
    status, found = command("--size", "1024")
    assert status == 0
    assert "GiB of memory, 1.0 GiB are free" in found["models"][0]["skipped"]
    assert "psp-1024: skipped" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell it apart")
def test_the_peak_of_a_fresh_process_is_its_own_and_not_this_ones():
    ballast = np.ones(2**26)  # 512 MiB
    tiny = models.tiny("psp")
    measured = workload.drawn_workload(tiny, batch=1, threads=1, report=lambda step: None)
    run = fresh.measure("tiny", measured.engine, measured.pictures[0], threads=1, processes=1)
    assert run.peak_mib < ballast.nbytes / 2**20


def test_a_checkpoint_without_an_engine_is_refused(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        latency.main(["--checkpoint", "a.pt"])
    assert "python -m export" in capsys.readouterr().err


def test_a_missing_engine_is_an_error_and_no_traceback(capsys: pytest.CaptureFixture):
    assert latency.main(["nowhere.engine", *QUICK]) == 2
    assert "Error: nowhere.engine cannot be read" in capsys.readouterr().err


# Comparing two runs.


def test_compare_fails_on_a_regression_and_passes_within_the_bound(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    before, after = result(tmp_path / "before.json", 1), result(tmp_path / "after.json", 1.2)
    assert latency.main(["--compare", str(before), str(after)]) == 1
    assert "REGRESSION" in capsys.readouterr().out
    assert latency.main(["--compare", str(before), str(after), "--regression", "1.3"]) == 0
    assert latency.main(["--compare", str(after), str(before)]) == 0


def test_compare_does_not_take_noise_for_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture):
    before, after = result(tmp_path / "before.json", 1, 0.9), result(tmp_path / "after.json", 1.15, 0.9)
    assert latency.main(["--compare", str(before), str(after)]) == 0
    assert "1.150" in capsys.readouterr().out


def test_compare_says_what_spoils_the_comparison(tmp_path: Path, capsys: pytest.CaptureFixture):
    before, after = result(tmp_path / "before.json", 1), result(tmp_path / "after.json", 1)
    content = json.loads(after.read_text())
    content["complete"] = False
    content["provenance"]["cpu"] = "b"
    del content["models"][0]["timings"][1]
    after.write_text(json.dumps(content))
    assert latency.main(["--compare", str(before), str(after)]) == 0
    shown = capsys.readouterr().out
    assert "cpu differs: a before, b after" in shown
    assert "was interrupted" in shown
    assert "not measured after: m, psp_rt-cpu, generate, 1" in shown


def test_compare_refuses_other_files(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "a.json").write_text("{}")
    assert latency.main(["--compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")]) == 2
    assert "expected a file written with --json" in capsys.readouterr().err
