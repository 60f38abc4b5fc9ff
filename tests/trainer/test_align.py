"""Photos are aligned once into the run folder; those without a face are left out by name."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from psp_rt import faces
from tests.messages import assert_says
from trainer.cli.main import main
from trainer.data.align import align_photos

PHOTO = Path(__file__).parents[2] / "models" / "astronaut.jpg"


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(PHOTO, folder / "person.jpg")
    Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(folder / "person.png")
    return folder


def test_faces_are_cut_once_and_others_are_left_out_by_name(photos, tmp_path):
    cache, left_out = align_photos(photos, tmp_path / "cache")
    assert_says(left_out.pop("person.png"), "no face")
    assert not left_out
    (cut,) = cache.glob("*.jpg")
    (face, *_) = faces.find(cut)
    assert faces.is_aligned(face, *Image.open(cut).size)
    before = cut.stat().st_mtime_ns
    align_photos(photos, tmp_path / "cache")
    assert cut.stat().st_mtime_ns == before
    (photos / "person.png").unlink()
    assert align_photos(photos, tmp_path / "cache")[1] == {}


def test_photos_that_belong_to_pairs_are_not_moved(photos, tmp_path):
    words = ["encoder", "--task", "sketch", "--align", "--images", photos, "--pairs", photos]
    done = CliRunner().invoke(main, [*map(str, words), "--output", str(tmp_path / "run")])
    assert done.exit_code == 1
    assert_says(done.output, "--align", "--pairs")
