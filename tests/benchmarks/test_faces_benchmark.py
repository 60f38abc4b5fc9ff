"""The benchmarks of the face finder and of drawings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import psp_rt.faces
from benchmarks import drawings, faces

SNAPSHOT = Path(__file__).parents[2] / "models" / "astronaut.jpg"


@pytest.fixture(scope="module")
def portraits(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("portraits")
    photo = Image.open(SNAPSHOT).convert("RGB")
    crop = psp_rt.faces.crop(photo, psp_rt.faces.find(photo)[0], 256)
    crop.save(folder / "a.png")
    return folder


def test_faces_are_found_at_the_places_that_they_were_put(portraits, tmp_path, capsys):
    file = tmp_path / "faces.json"
    arguments = ["--portraits", str(portraits), "--count", "1", "--backends", "onnxruntime"]
    assert faces.main([*arguments, "--json", str(file)]) == 0
    kinds = json.loads(file.read_text())["backends"]["onnxruntime"]["kinds"]
    assert list(kinds) == list(faces.KINDS)
    assert kinds["upright"]["mean_px"] == 0
    assert all(row["count"] == 1 and row["median_ms"] > 0 for row in kinds.values())
    assert kinds["pasted"]["found"] == 1
    assert kinds["pasted"]["mean_px"] < 5
    assert "pasted" in capsys.readouterr().out


def test_too_few_portraits_are_an_error(portraits, capsys):
    assert faces.main(["--portraits", str(portraits), "--count", "5"]) == 1
    assert "1 pictures" in capsys.readouterr().err


def test_the_same_seed_makes_the_same_pictures():
    portrait = Image.open(SNAPSHOT).convert("RGB")
    one, other = (list(faces.samples(portrait, np.random.default_rng(5))) for _ in range(2))
    assert [sample.kind for sample in one] == list(faces.KINDS)
    for a, b in zip(one, other, strict=True):
        assert a.pixels.shape == (480, 640, 3)
        np.testing.assert_array_equal(a.pixels, b.pixels)


def test_drawings_are_judged_by_the_face_and_its_eyes(tmp_path, monkeypatch):
    monkeypatch.setattr(drawings, "MEANS", (drawings.clean_file, drawings.transparent))
    file, sheet = tmp_path / "drawings.json", tmp_path / "sheet.png"
    assert drawings.main(["--each", "1", "--json", str(file), "--sheet", str(sheet)]) == 0
    found = json.loads(file.read_text())
    assert list(found["means"]) == ["clean file", "transparent"]
    assert found["all"]["count"] == 2
    assert found["all"]["seen"] == 1
    assert found["all"]["eyes_max"] < 0.08
    assert Image.open(sheet).size == (3 * drawings.TILE, 3 * drawings.TILE)
