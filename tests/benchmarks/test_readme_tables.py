"""README's tables come from the result files, each from its own."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import readme_tables
from psp_rt import InputError

CPU = readme_tables.RESULTS / "cpu-1024.json"


def place(name: str, text: str = "old\n") -> str:
    return f"<!-- {name}: written by `make readme-tables` -->\n{text}<!-- /{name} -->\n"


def test_each_place_is_filled_from_its_own_file_and_the_rest_stays(tmp_path: Path):
    for name, rounds in (("one", 11), ("two", 22)):
        content = json.loads(CPU.read_text())
        content["settings"]["rounds"] = rounds
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    found = readme_tables.updated(f"before\n{place('two')}between\n{place('one')}after\n", tmp_path)
    first, second = found.split("between\n")
    assert first.startswith("before\n<!-- two:")
    assert "medians of 22 rounds" in first
    assert "[benchmarks/results/two.json]" in first
    assert "medians of 11 rounds" in second
    assert second.endswith("<!-- /one -->\nafter\n")
    assert "old" not in found
    assert readme_tables.updated(found, tmp_path) == found


def test_all_models_of_a_file_have_a_table_and_skipped_ones_none(tmp_path: Path):
    content = json.loads(CPU.read_text())
    (model,) = content["models"]
    other = {**model, "name": "w-512", "encoder": "w", "output": "512 x 512"}
    content["models"] = [model, {**model, "timings": [], "skipped": "needs memory"}, other]
    (tmp_path / "all.json").write_text(json.dumps(content))
    found = readme_tables.updated(place("all"), tmp_path)
    assert found.count("| --- | ---: |") == 2
    assert "output 1024)" in found
    assert "output 512, w encoder)" in found


def test_several_encoders_stand_beside_the_papers(tmp_path: Path):
    content = json.loads(CPU.read_text())
    assert "Tesla P40" not in readme_tables.updated(place("cpu-1024"))  # pSp alone has its own table
    ours = {"method": "W", "machine": "here", "seconds": 1.254, "p40_seconds": 0.0249}
    content["paper"] += [{**ours, "contender": name} for name in ("psp_rt-openvino", "pytorch-original")]
    (tmp_path / "encoders.json").write_text(json.dumps(content))
    found = readme_tables.updated(place("encoders"), tmp_path)
    assert (
        "| encoder | the paper, Tesla P40 | PyTorch, original formulation | psp_rt (OpenVINO, FP32) |"
        in found
    )
    assert "| W | 0.063 | 1.25 (0.025) | 1.25 (0.025) |" in found
    assert "| pSp | 0.106 | 1.90 (" in found


def test_a_scaling_run_shows_how_time_and_memory_of_psp_rt_grow(tmp_path: Path):
    content = json.loads(CPU.read_text())
    common = {"model": "psp-256", "contender": "psp_rt-openvino", "line": None}
    line = {"fixed": 12.4, "slope": 118.0, "residual": 3.21}
    time = {**common, "axis": "batch", "what": "end to end", "unit": "ms", "points": [[1, 130.2], [2, 250.0]]}
    memory = {**common, "axis": "size", "what": "peak memory", "unit": "MiB", "points": [[0.065536, 900.0]]}
    other = {**time, "contender": "psp_rt-cpu", "points": [[1, 77777.0]]}
    content["scaling"] = [memory, {**time, "line": line}, other, {**time, "what": "encode"}]
    (tmp_path / "all.json").write_text(json.dumps(content))
    rows = [row for row in readme_tables.updated(place("all"), tmp_path).splitlines() if "psp-256" in row]
    assert rows == [
        "| batch | psp-256 | time, ms | 1: 130, 2: 250 | 12 + 118 a picture (3.2) |",
        "| output size | psp-256 | peak memory, MiB | 256: 900 |  |",
    ]


def test_times_of_a_gpu_are_in_milliseconds_against_the_original_on_it(tmp_path: Path):
    content = json.loads(CPU.read_text())
    names = {"pytorch-original": "pytorch-original-cuda", "psp_rt-cpu": "psp_rt-tensorrt-fp16"}
    timings = [timing for timing in content["models"][0]["timings"] if timing["contender"] in names]
    for timing in timings:
        timing["contender"] = names[timing["contender"]]
        timing["p50_ms"] = 10.0 if timing["contender"] == "pytorch-original-cuda" else 2.0
    content["models"][0]["timings"] = timings
    (tmp_path / "gpu.json").write_text(json.dumps(content))
    found = readme_tables.updated(place("gpu"), tmp_path)
    assert "| milliseconds | encode" in found
    assert "| psp_rt (TensorRT, FP16) | 2 | 2 | 2 |" in found
    assert "| **original / psp_rt (TensorRT, FP16)** | **5.00x** |" in found


def test_a_place_without_a_result_is_an_error_that_names_the_file(tmp_path: Path):
    with pytest.raises(InputError, match=r"benchmarks/results/gone\.json cannot be read"):
        readme_tables.updated(place("gone"), tmp_path)


def test_a_result_of_another_format_is_an_error_that_names_the_known_ones(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"format": "other"}')
    with pytest.raises(InputError, match=r"expected one of psp_rt\.latency"):
        readme_tables.updated(place("a"), tmp_path)


def test_two_places_for_one_file_are_an_error(tmp_path: Path):
    shutil.copy(CPU, tmp_path / "a.json")
    with pytest.raises(InputError, match="more than one place for a"):
        readme_tables.updated(place("a") + place("a"), tmp_path)


def test_a_result_without_a_place_is_told_with_what_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    (tmp_path / "README.md").write_text(place("a"))
    for name in ("a", "b"):
        shutil.copy(CPU, tmp_path / f"{name}.json")
    monkeypatch.setattr(readme_tables, "ROOT", tmp_path)
    monkeypatch.setattr(readme_tables, "RESULTS", tmp_path)
    (tmp_path / "profile.json").write_text('{"format": "something else"}')
    assert readme_tables.main() == 0
    shown = capsys.readouterr().out
    assert "<!-- b: written by `make readme-tables` -->" in shown
    assert "profile" not in shown
    assert "| seconds |" in (tmp_path / "README.md").read_text()


def test_every_committed_result_has_a_place_in_readme():
    pages = (readme_tables.ROOT / page for page in readme_tables.PAGES)
    assert readme_tables.without_place("".join(page.read_text() for page in pages)) == []


def test_a_page_in_a_folder_links_to_the_result_from_there():
    found = readme_tables.updated(place("cpu-1024"), folder=readme_tables.ROOT / "trainer")
    assert "[benchmarks/results/cpu-1024.json](../benchmarks/results/cpu-1024.json)" in found
