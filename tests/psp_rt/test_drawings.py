"""Drawings are cleaned so that they look like those that sketch models are trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from benchmarks import drawings as means
from benchmarks.drawn_faces import drawn_face
from psp_rt import InputError, drawings, faces
from tests.messages import assert_says

MODELS = Path(__file__).parents[2] / "models"
SNAPSHOT = MODELS / "astronaut.jpg"
SAMPLE = Path(__file__).parents[3] / "shared" / "samples" / "sketch_256.jpg"


REPORTS = {
    means.white_on_black: "lines inverted",
    means.framed: "frame dropped",
    means.graph_paper: "ruled lines dropped",
}


@pytest.fixture(scope="module")
def drawing() -> Image.Image:
    return Image.open(MODELS / "drawing.png").convert("L")


def eyes_in(cleaned: drawings.Drawing, eyes: np.ndarray) -> np.ndarray:
    """Return where points of the input lie in the result, as a part of its side."""
    origin, down, _, across = cleaned.quad
    return (eyes - origin) @ np.linalg.inv(np.column_stack([across - origin, down - origin])).T


def white_share(picture: Image.Image) -> float:
    return float((np.asarray(picture) > 250).mean())


def test_a_clean_drawing_stays_as_it_is(drawing):
    cleaned = drawings.clean(drawing)
    distance = np.abs(np.asarray(cleaned.picture, int) - np.asarray(drawing, int))
    assert distance.max() <= 2
    assert cleaned.report == "clean already"
    np.testing.assert_array_equal(cleaned.quad, [[0, 0], [0, 256], [256, 256], [256, 0]])


@pytest.mark.skipif(not SAMPLE.exists(), reason="needs ../shared/samples next to the checkout")
def test_a_sketch_of_the_original_project_is_clean():
    cleaned = drawings.clean(SAMPLE)
    expected = np.asarray(Image.open(SAMPLE).convert("L"), int)
    assert np.abs(np.asarray(cleaned.picture, int) - expected).mean() <= 2


# The other means are those of benchmarks/drawings.py.
@pytest.mark.parametrize(
    "make",
    [
        *(means.colored_paper, means.on_a_table, means.white_on_black, means.engraving, means.cropped_chin),
        *(means.graph_paper, means.framed),
    ],
    ids=lambda make: make.__name__,
)
def test_drawings_by_many_means_become_lines_on_white(make):
    rng = np.random.default_rng(7)
    case = make(drawn_face(rng), rng)
    cleaned = drawings.clean(case.picture)
    assert_says(cleaned.report, REPORTS.get(make, "paper evened"), "cropped around the face")
    assert white_share(cleaned.picture) > (0.3 if make is means.engraving else 0.7)
    assert np.asarray(cleaned.picture).min() < 100
    # The eyes lie where FFHQ has them: the square is cut around the face.
    np.testing.assert_allclose(eyes_in(cleaned, case.eyes), [[0.38, 0.48], [0.62, 0.48]], atol=0.07)


def test_a_drawing_in_a_deep_shadow_is_not_inverted(drawing):
    dark = Image.fromarray((np.asarray(drawing) * 0.3 + 5).astype(np.uint8))
    cleaned = drawings.clean(dark)
    assert "inverted" not in cleaned.report
    assert white_share(cleaned.picture) > 0.7


def test_without_a_face_the_crop_follows_the_lines():
    sheet = Image.new("L", (800, 600), 255)
    sheet.paste(Image.new("L", (100, 6), 0), (400, 200))
    sheet.paste(Image.new("L", (6, 150), 0), (450, 200))

    class Blind:
        def find(self, pixels):
            return []

    cleaned = drawings.clean(sheet, size=64, finder=Blind())
    assert_says(cleaned.report, "cropped around the lines")
    low, high = cleaned.quad.min(0), cleaned.quad.max(0)
    assert (low <= [400, 200]).all()
    assert (high >= [500, 350]).all()
    assert (high - low).max() < 200
    assert cleaned.picture.size == (64, 64)


def test_a_drawing_may_have_any_form(drawing):
    expected = np.asarray(drawings.clean(drawing).picture)
    path = MODELS / "drawing.png"
    for form in (path, path.read_bytes(), np.asarray(drawing), drawing.convert("RGB")):
        np.testing.assert_array_equal(np.asarray(drawings.clean(form).picture), expected)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_an_empty_sheet_is_refused(level):
    with pytest.raises(InputError):  # all black may as well be a photo
        drawings.clean(Image.new("RGB", (300, 300), (level,) * 3))


def test_a_photo_is_recognized_and_a_drawing_is_not_taken_for_one(drawing):
    photo = Image.open(SNAPSHOT)
    crop = faces.crop(photo.convert("RGB"), faces.find(photo)[0], 256)
    for picture in (photo, crop, crop.convert("L")):
        assert drawings.looks_like_photo(picture)
    for picture in (drawing, ImageOps.invert(drawing)):
        assert not drawings.looks_like_photo(picture)
    with pytest.raises(InputError) as caught:
        drawings.clean(photo)
    assert_says(caught, "looks like a photo", "--from-photo", "--no-clean")


def test_a_photo_can_be_drawn():
    drawn = drawings.from_photo(SNAPSHOT, size=256)
    assert (drawn.picture.mode, drawn.picture.size) == ("L", (256, 256))
    assert 0.6 < white_share(drawn.picture) < 0.97
    assert_says(drawn.report, "1 face", "drawn")
    found = faces.find(SNAPSHOT)[0]
    np.testing.assert_allclose(drawn.quad, found.quad + 0.5)
    again = drawings.from_photo(SNAPSHOT, size=256)
    np.testing.assert_array_equal(np.asarray(drawn.picture), np.asarray(again.picture))
