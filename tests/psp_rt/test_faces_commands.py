"""Real pictures on the command line: ``psp-rt run`` with faces and drawings, and ``psp-rt faces``."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psp_rt import Translator, drawings, faces, pencil, write_engine
from tests.messages import assert_says
from tests.models import tiny_engine
from tests.psp_rt.test_cli import psp_rt, read

MODELS = Path(__file__).parents[2] / "models"
SNAPSHOT = MODELS / "astronaut.jpg"
DRAWING = MODELS / "drawing.png"


@pytest.fixture(scope="module")
def ffhq(tmp_path_factory) -> Path:
    """A tiny engine that expects aligned faces."""
    path = tmp_path_factory.mktemp("ffhq") / "faces.engine"
    write_engine(path, replace(tiny_engine.manifest(), alignment="ffhq"), tiny_engine.members())
    return path


@pytest.fixture(scope="module")
def sketch(tmp_path_factory) -> Path:
    """A tiny engine that takes drawings."""
    path = tmp_path_factory.mktemp("sketch") / "sketch.engine"
    manifest = replace(tiny_engine.manifest("gray"), task="sketch")
    write_engine(path, manifest, tiny_engine.members("gray"))
    return path


@pytest.fixture(scope="module")
def group(tmp_path_factory) -> Path:
    """A photo of two faces, the smaller one on the left."""
    snapshot = Image.open(SNAPSHOT)
    photo = Image.new("RGB", (900, 512))
    photo.paste(snapshot.resize((300, 300), Image.Resampling.LANCZOS), (0, 100))
    photo.paste(snapshot, (350, 0))
    path = tmp_path_factory.mktemp("group") / "group.png"
    photo.save(path)
    return path


def run(engine: Path, *args: object):
    return psp_rt("run", engine, *args, "--device", "cpu", "--threads", 1)


def translated(engine: Path, picture: Image.Image) -> np.ndarray:
    with Translator(engine, device="cpu", threads=1) as translator:
        return np.asarray(translator.run(picture))


# psp-rt run, faces.


def test_run_cuts_and_translates_the_face_and_says_where(ffhq, tmp_path):
    done = run(ffhq, SNAPSHOT, "-o", tmp_path / "face.png")
    assert (done.exit_code, done.stdout) == (0, f"wrote {tmp_path / 'face.png'}\n")
    assert_says(done.stderr, "astronaut.jpg: 1 face", "174x174", "turned 3 degrees")
    photo = Image.open(SNAPSHOT).convert("RGB")
    crop = faces.crop(photo, faces.find(photo)[0], tiny_engine.HEIGHT)
    np.testing.assert_array_equal(read(tmp_path / "face.png"), translated(ffhq, crop))


def test_faces_off_translates_the_whole_picture(ffhq, tmp_path):
    done = run(ffhq, SNAPSHOT, "-o", tmp_path / "face.png", "--faces", "off")
    assert "1 face" not in done.stderr
    np.testing.assert_array_equal(read(tmp_path / "face.png"), translated(ffhq, Image.open(SNAPSHOT)))


def test_an_aligned_picture_is_translated_as_it_is(ffhq, tmp_path):
    photo = Image.open(SNAPSHOT).convert("RGB")
    aligned = tmp_path / "aligned.png"
    faces.crop(photo, faces.find(photo)[0], 300).save(aligned)
    assert_says(run(ffhq, aligned, "-o", tmp_path / "found.png").stderr, "already aligned")
    run(ffhq, aligned, "-o", tmp_path / "whole.png", "--faces", "off")
    np.testing.assert_array_equal(read(tmp_path / "found.png"), read(tmp_path / "whole.png"))


def test_the_largest_face_is_taken_and_the_others_are_mentioned(ffhq, group, tmp_path):
    done = run(ffhq, group, "-o", tmp_path / "face.png")
    assert_says(done.stderr, "1 face", "largest of 2", "--faces all")
    assert [path.name for path in tmp_path.iterdir()] == ["face.png"]


def test_all_faces_give_a_result_each(ffhq, group, tmp_path):
    done = run(ffhq, group, "-o", tmp_path / "face.png", "--faces", "all")
    assert_says(done.stderr, "2 faces")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["face-face1.png", "face-face2.png"]


def test_paste_puts_all_results_into_the_photo(ffhq, group, tmp_path):
    done = run(ffhq, group, "-o", tmp_path / "changed.png", "--faces", "all", "--paste")
    assert done.exit_code == 0
    changed = (read(tmp_path / "changed.png") != read(group)).any(axis=2)
    assert changed.shape == (512, 900)
    assert changed[:, :300].any()
    assert changed[:, 350:].any()
    assert changed.mean() < 0.2


def test_without_a_face_the_error_names_the_picture_and_the_way_out(ffhq, tmp_path):
    blank = tmp_path / "wall.png"
    Image.new("RGB", (300, 200), (120, 130, 110)).save(blank)
    done = run(ffhq, blank, SNAPSHOT, "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert_says(done.stderr, "1 of 2", str(blank), "no face", "--faces off")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["astronaut.png"]


def test_an_engine_that_does_not_say_gets_a_hint_and_whole_pictures(engine_paths, tmp_path):
    done = run(engine_paths["rgb"], SNAPSHOT, "-o", tmp_path / "face.png")
    assert_says(done.stderr, "--faces largest")
    assert "1 face" not in done.stderr


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (["--faces", "off", "--paste"], ["--paste", "--faces largest"]),
        (["--paste", "--couple"], ["--paste", "--couple"]),
        (["--from-photo"], ["--from-photo", "sketch"]),
    ],
)
def test_options_that_contradict_each_other_are_refused(ffhq, tmp_path, options, facts):
    done = run(ffhq, SNAPSHOT, "-o", tmp_path / "face.png", *options)
    assert done.exit_code == 2
    assert_says(done.stderr, *facts)
    assert list(tmp_path.iterdir()) == []


# psp-rt run, drawings.


def test_a_clean_drawing_is_translated_as_it_is(sketch, tmp_path):
    assert_says(run(sketch, DRAWING, "-o", tmp_path / "cleaned.png").stderr, "clean already")
    run(sketch, DRAWING, "-o", tmp_path / "as_it_is.png", "--no-clean")
    np.testing.assert_array_equal(read(tmp_path / "cleaned.png"), read(tmp_path / "as_it_is.png"))


def test_a_drawing_white_on_black_is_inverted(sketch, tmp_path):
    inverted = tmp_path / "inverted.png"
    Image.fromarray(255 - read(DRAWING)).save(inverted)
    assert_says(run(sketch, inverted, "-o", tmp_path / "face.png").stderr, "inverted.png:", "lines inverted")


def test_a_photo_instead_of_a_drawing_is_named(sketch, tmp_path):
    done = run(sketch, SNAPSHOT, "-o", tmp_path / "face.png")
    assert done.exit_code == 1
    assert_says(done.stderr, str(SNAPSHOT), "looks like a photo", "--from-photo", "--no-clean")


def test_from_photo_draws_the_face_first(sketch, tmp_path):
    done = run(sketch, SNAPSHOT, "-o", tmp_path / "face.png", "--from-photo")
    assert_says(done.stderr, "astronaut.jpg: 1 face", "174x174", "drawn")
    drawn = drawings.from_photo(SNAPSHOT)
    np.testing.assert_array_equal(read(tmp_path / "face.png"), translated(sketch, drawn.picture))


def test_from_photo_without_a_face_names_the_picture(sketch, tmp_path):
    blank = tmp_path / "wall.png"
    Image.new("RGB", (300, 200), "gray").save(blank)
    done = run(sketch, blank, "-o", tmp_path / "face.png", "--from-photo")
    assert done.exit_code == 1
    assert_says(done.stderr, str(blank), "no face")
    assert "--faces off" not in done.stderr  # sketch engines look for no faces


def test_from_photo_without_opencv_says_what_to_install(sketch, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    pencil.load_opencv.cache_clear()
    done = run(sketch, SNAPSHOT, "-o", tmp_path / "face.png", "--from-photo")
    pencil.load_opencv.cache_clear()
    assert done.exit_code == 1
    assert_says(done.stderr, "pip install opencv-python-headless")


# psp-rt faces.


def test_faces_says_what_it_finds(group):
    done = psp_rt("faces", SNAPSHOT, group)
    assert done.exit_code == 0
    assert_says(done.stdout, f"{SNAPSHOT}: 1 face: 174x174, turned 3 degrees", f"{group}: 2 faces")


def test_faces_writes_a_json_line_for_each_photo(group, tmp_path):
    blank = tmp_path / "wall.png"
    Image.new("RGB", (300, 200), "gray").save(blank)
    done = psp_rt("faces", SNAPSHOT, group, blank, "--json", "-")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["photo"], len(line["faces"])) for line in lines] == [
        (str(SNAPSHOT), 1),
        (str(group), 2),
        (str(blank), 0),
    ]
    (face,) = lines[0]["faces"]
    found = faces.find(SNAPSHOT)[0]
    np.testing.assert_allclose(face["quad"], found.quad, atol=0.006)
    assert face["score"] == pytest.approx(found.score, abs=1e-4)
    psp_rt("faces", SNAPSHOT, group, blank, "--json", tmp_path / "faces.jsonl")
    assert (tmp_path / "faces.jsonl").read_text() == done.stdout


def test_faces_writes_aligned_crops(group, tmp_path):
    done = psp_rt("faces", SNAPSHOT, group, "-o", tmp_path / "crops", "--size", 128)
    assert done.exit_code == 0
    names = ["astronaut.png", "group-face1.png", "group-face2.png"]
    assert sorted(path.name for path in (tmp_path / "crops").iterdir()) == names
    crop = Image.open(tmp_path / "crops" / "astronaut.png")
    photo = Image.open(SNAPSHOT).convert("RGB")
    np.testing.assert_array_equal(np.asarray(crop), np.asarray(faces.crop(photo, faces.find(photo)[0], 128)))


def test_crops_of_photos_of_one_name_do_not_replace_each_other(group, tmp_path):
    folder = tmp_path / "photos"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        Image.open(SNAPSHOT).save(folder / name / "me.jpg")
    # The second face of group.png has the name that a photo of its own would have.
    Image.open(group).save(folder / "group.png")
    Image.open(SNAPSHOT).save(folder / "group-face2.jpg")
    done = psp_rt("faces", folder, "--recursive", "-o", tmp_path / "crops", "--size", 32)
    assert done.exit_code == 0, done.stderr
    assert len([path for path in (tmp_path / "crops").rglob("*") if path.is_file()]) == 5


def test_faces_goes_on_past_an_unreadable_photo(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    done = psp_rt("faces", tmp_path / "broken.jpg", SNAPSHOT)
    assert done.exit_code == 1
    assert_says(done.stdout, "astronaut.jpg: 1 face")
    assert_says(done.stderr, "1 of 2", "broken.jpg")


def test_photos_without_a_face_give_no_crop_and_are_named(tmp_path):
    blank = tmp_path / "wall.png"
    Image.new("RGB", (300, 200), "gray").save(blank)
    done = psp_rt("faces", blank, "-o", tmp_path / "crops")
    assert_says(done.stderr, "wall", "no face")
    assert not (tmp_path / "crops").exists()
