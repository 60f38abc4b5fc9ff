"""The soak and the measurements of video run, and say what is broken."""

import json
from pathlib import Path

import pytest

pytest.importorskip("av")

from benchmarks import ROOT, soak, video
from psp_rt import Translator
from tests.messages import assert_says

RESULTS = ROOT / "benchmarks" / "results"


def test_a_short_soak_breaks_no_promise(engine_paths, tmp_path):
    words = ["--engine", str(engine_paths["rgb"]), "--seconds", "1", "--json", str(tmp_path / "a.json")]
    assert soak.main(words) == 0
    result = json.loads((tmp_path / "a.json").read_text())
    assert result["rounds"] >= 4
    assert result["corrupt"] > 0
    assert result["engine_errors"] > 0
    assert result["frames_in"] >= result["frames_out"] > 300
    assert result["films"] > 0
    assert result["broken"] == []


def test_a_soak_notices_frames_that_are_swapped(engine_paths, monkeypatch, capsys):
    stream = Translator.stream

    def swapped(self, frames, **settings):
        results = list(stream(self, frames, **settings))
        yield from [*results[1:], results[0]]

    monkeypatch.setattr(soak, "ROUND_FRAMES", 40)
    monkeypatch.setattr(Translator, "stream", swapped)
    assert soak.main(["--engine", str(engine_paths["rgb"]), "--seconds", "0"]) == 1
    assert_says(capsys.readouterr().out, "out of order")


@pytest.mark.slow
def test_video_is_measured(tmp_path):
    words = ["--frames", "30", "--long-frames", "200", "--json", str(tmp_path / "a.json")]
    video.main(words)
    result = json.loads((tmp_path / "a.json").read_text())
    assert all(row["ratio"] < video.GOALS["flicker"] for row in result["flicker"])
    assert result["throughput"][0]["frames"] == 30


@pytest.mark.parametrize("name", ["video.json", "soak.json"])
def test_the_committed_results_keep_the_promises_that_need_no_fast_machine(name):
    result = json.loads(Path(RESULTS / name).read_text())
    if name == "soak.json":
        assert result["broken"] == []
        assert result["seconds"] >= 120
    else:
        assert all(row["ratio"] < video.GOALS["flicker"] for row in result["flicker"])
        assert result["memory"]["frames"] >= 5000
        assert result["memory"]["growth"] < video.GOALS["memory_growth"]


def test_the_figures_of_video_in_the_pages_are_those_of_the_committed_results():
    measured = json.loads((RESULTS / "video.json").read_text())
    soaked = json.loads((RESULTS / "soak.json").read_text())
    readme, page = (ROOT / "README.md").read_text(), (ROOT / "benchmarks" / "README.md").read_text()
    worst = max(row["ratio"] for row in measured["flicker"])
    without = max(row["ratio_found"] for row in measured["flicker"])
    assert_says(readme, f"flickers {worst:.2f} times", f"{without:.1f} times without the smoothing")
    one, two = (f"{row['of_slowest_stage']:.0%}" for row in measured["throughput"])
    assert_says(
        page, f"{one} and {two} of what", f"{soaked['frames_in']:,} frames in, {soaked['frames_out']:,} out"
    )
