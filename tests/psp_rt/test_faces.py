"""Faces in pictures: found, cut as FFHQ cuts them, put back, and translated."""

from __future__ import annotations

import io
import math
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from psp_rt import DeviceError, InputError, faces
from psp_rt.faces import Face, MeshFinder
from psp_rt.faces.face import LEFT_EYE, MOUTH_CORNERS, RIGHT_EYE
from psp_rt.hardware.openvino import OpenVinoState
from tests.messages import assert_says
from tests.psp_rt.official_crop import official_crop

MODELS = Path(__file__).parents[2] / "models"
SNAPSHOT = MODELS / "astronaut.jpg"  # 512x512, one face of 174 pixels
PORTRAIT = Path(__file__).parents[3] / "shared" / "samples" / "face_1024.jpg"


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.open(SNAPSHOT).convert("RGB")


@pytest.fixture(scope="module")
def face(photo) -> Face:
    (found,) = faces.find(photo)
    return found


def landmarks(left_eye, right_eye, mouth) -> np.ndarray:
    """Return a mesh whose eyes and mouth corners lie at given places."""
    points = np.zeros((468, 2))
    points[list(LEFT_EYE)], points[list(RIGHT_EYE)] = left_eye, right_eye
    points[list(MOUTH_CORNERS)] = mouth
    return points


def square(center, side: float, turn: float = 0) -> Face:
    """Return a face whose quad has this center, side and turn in degrees."""
    angle = math.radians(turn)
    across, down = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
    eye, mouth = side / 4, side / 3.6  # both of the formula's lengths give the same side
    middle = np.array(center) - 0.1 * mouth * down
    return Face(
        landmarks(middle - eye / 2 * across, middle + eye / 2 * across, middle + mouth * down), score=1.0
    )


def corner_distance(found: Face, expected: np.ndarray) -> float:
    """Return the mean distance of a face's corners from expected ones, in pixels of a 256-pixel crop."""
    return float(np.hypot(*(found.quad - expected).T).mean() * 256 / found.side)


# The square.


def test_the_quad_follows_the_formula_of_ffhq():
    found = Face(landmarks([40, 50], [60, 50], [50, 75]), score=1.0)
    # 3.6 times 25 from eyes to mouth is more than 4 times 20 between the eyes.
    corners = [[5, 7.5], [5, 97.5], [95, 97.5], [95, 7.5]]
    np.testing.assert_allclose(found.quad, corners)  # from the center of the first pixel
    assert (found.side, found.turn) == (90, 0)


def test_a_face_leaning_right_has_a_positive_turn():
    found = square((100, 100), 80, turn=30)
    assert found.turn == pytest.approx(30)
    assert found.quad[0][0] > found.quad[1][0]  # its top left corner lies right of the bottom left one


# Finding.


def test_a_face_is_found_where_it_is(face):
    assert face.score > 0.8
    assert face.side == pytest.approx(174, abs=6)
    np.testing.assert_allclose(face.eyes, [[204, 101], [247, 104]], atol=3)
    assert face.landmarks.shape == (468, 2)


@pytest.mark.parametrize("turn", [-120, -60, 30, 90, 180])
def test_a_turned_face_is_found_upright(photo, face, turn):
    turned = photo.rotate(-turn, Image.Resampling.BICUBIC)  # clockwise by `turn`
    angle = math.radians(turn)
    matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    expected = (face.quad - 256) @ matrix.T + 256
    found = faces.find(turned)[0]
    assert abs(math.remainder(found.turn - face.turn - turn, 360)) < 3
    assert corner_distance(found, expected) < 4


@pytest.mark.parametrize("side", [1600, 3000])
def test_a_small_face_in_a_large_picture_is_found(photo, face, side):
    picture = Image.new("RGB", (side, side * 3 // 4), (90, 110, 90))
    picture.paste(photo, (side - 700, 100))
    (found,) = faces.find(picture)
    assert corner_distance(found, face.quad + np.array([side - 700, 100])) < 4


def test_a_dark_face_is_found(photo, face):
    pixels = 255 * (np.asarray(photo) / 255) ** 1.8 * 0.5
    noisy = np.clip(pixels + np.random.default_rng(0).normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)
    (found,) = faces.find(noisy)
    assert corner_distance(found, face.quad) < 4


def test_all_faces_are_found_the_largest_first(photo, face):
    picture = Image.new("RGB", (900, 512))
    picture.paste(photo.resize((300, 300), Image.Resampling.LANCZOS), (0, 100))
    picture.paste(photo, (350, 0))
    found = faces.find(picture)
    assert [round(one.side / face.side, 1) for one in found] == [1.0, 0.6]
    assert faces.largest(found[::-1]) is found[0]


@pytest.mark.parametrize("content", ["black", "noise", "gradient"])
def test_a_picture_without_a_face_gives_none(content):
    rng = np.random.default_rng(0)
    pixels = {
        "black": np.zeros((200, 300, 3), np.uint8),
        "noise": rng.integers(0, 256, (200, 300, 3), dtype=np.uint8),
        "gradient": np.broadcast_to(np.linspace(0, 255, 300).astype(np.uint8)[None, :, None], (200, 300, 3)),
    }[content]
    assert faces.find(pixels) == []


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (400, 2)])
def test_pictures_of_odd_sizes_are_no_problem(size):
    assert faces.find(Image.new("RGB", size, "white")) == []


def test_a_picture_may_have_any_form(photo, face):
    data = SNAPSHOT.read_bytes()
    transparent = photo.convert("RGBA")
    for form in (SNAPSHOT, str(SNAPSHOT), data, io.BytesIO(data), np.asarray(photo), transparent):
        np.testing.assert_array_equal(faces.find(form)[0].quad, face.quad)
    gray = np.asarray(photo.convert("L"))
    assert corner_distance(faces.find(gray)[0], face.quad) < 4


def test_corners_are_those_of_the_upright_picture(photo, face):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    stored = io.BytesIO()
    photo.transpose(Image.Transpose.ROTATE_90).save(stored, format="PNG", exif=exif)
    np.testing.assert_array_equal(faces.find(stored)[0].quad, face.quad)


def test_an_array_that_is_no_picture_is_refused():
    with pytest.raises(InputError) as caught:
        faces.find(np.zeros((2, 3, 4, 5), np.uint8))
    assert_says(caught, "[2, 3, 4, 5]")


def test_both_runtimes_find_the_same(photo):
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    (one,), (other,) = (
        MeshFinder(backend=name).find(np.asarray(photo)) for name in ("onnxruntime", "openvino")
    )
    np.testing.assert_allclose(one.landmarks, other.landmarks, atol=0.05)


def test_threads_may_share_a_finder(photo, face):
    found: list[Face] = []
    threads = [threading.Thread(target=lambda: found.extend(faces.find(photo))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for one in found:
        np.testing.assert_array_equal(one.landmarks, face.landmarks)


def test_a_face_is_followed_without_the_detector(photo, face):
    finder = MeshFinder()
    moved = np.roll(np.asarray(photo), (4, 6), axis=(0, 1))
    followed = finder.track(moved, face)
    assert followed is not None
    assert corner_distance(followed, face.quad + np.array([6, 4])) < 3
    assert finder.track(np.zeros_like(moved), face) is None


def test_without_a_runtime_the_error_says_what_to_install(monkeypatch):
    missing = OpenVinoState(problem="OpenVINO is not installed")
    monkeypatch.setattr("psp_rt.faces.networks.probe_openvino", lambda: missing)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DeviceError) as caught:
        MeshFinder()
    assert_says(caught, "ONNX Runtime or OpenVINO", "pip install")


def test_another_detector_can_be_given(photo):
    class Fixed:
        def find(self, pixels):
            assert pixels.shape == (512, 512, 3)
            return [square((200, 200), 100)]

    (found,) = faces.find(photo, finder=Fixed())
    assert found.side == pytest.approx(100)


# Cutting.


@pytest.mark.parametrize(
    ("factor", "center", "side", "turn"),
    [
        pytest.param(1, (222, 103), 174, 3, id="enlarged"),
        pytest.param(4, (888, 600), 900, -20, id="shrunk"),
        pytest.param(1, (230, 120), 420, 15, id="over_the_border"),
        pytest.param(1, (60, 60), 260, 0, id="over_a_corner"),
    ],
)
def test_a_crop_is_that_of_the_official_code(photo, factor, center, side, turn):
    picture = photo.resize((512 * factor, 512 * factor), Image.Resampling.BICUBIC)
    cut = square(center, side, turn)
    ours, official = (
        np.asarray(crop, float)
        for crop in (faces.crop(picture, cut, 256), official_crop(picture, cut.quad, 256))
    )
    distance = np.abs(ours - official)
    assert distance.mean() < 1
    assert np.percentile(distance, 99) < 8


@pytest.mark.skipif(not PORTRAIT.exists(), reason="needs ../shared/samples next to the checkout")
def test_a_portrait_is_cut_like_the_official_code():
    picture = Image.open(PORTRAIT).convert("RGB")
    found = faces.find(picture)[0]
    ours, official = faces.crop(picture, found, 256), official_crop(picture, found.quad, 256)
    assert np.abs(np.asarray(ours, float) - np.asarray(official, float)).mean() < 1


def test_a_crop_shows_the_face_upright(photo, face):
    turned = photo.rotate(-40, Image.Resampling.BICUBIC)
    crop = faces.crop(turned, faces.find(turned)[0], 256)
    straight = faces.crop(photo, face, 256)
    inner = (64, 64, 192, 192)
    distance = np.asarray(crop.crop(inner), float) - np.asarray(straight.crop(inner), float)
    assert np.abs(distance).mean() < 8


def test_a_quad_beside_the_picture_is_no_crash(photo):
    assert faces.crop(photo, square((-900, -900), 100), 64).size == (64, 64)


def test_a_crop_is_recognized_as_aligned(photo, face):
    crop = faces.crop(photo, face, 400)
    assert faces.is_aligned(faces.find(crop)[0], 400, 400)
    assert not faces.is_aligned(face, 512, 512)
    shifted = square((200 + 14, 200), 400)
    assert not faces.is_aligned(shifted, 400, 400)


# Pasting.


def test_pasting_the_crop_itself_changes_almost_nothing(photo, face):
    pasted = faces.paste(photo, face, faces.crop(photo, face, 512))
    distance = np.abs(np.asarray(pasted, float) - np.asarray(photo, float))
    assert distance.mean() < 0.5
    assert distance.max() < 60


def test_pasting_changes_the_face_and_nothing_outside_of_its_square(photo, face):
    pasted = np.asarray(faces.paste(photo, face, Image.new("RGB", (256, 256), (0, 255, 0))))
    x, y = face.quad.mean(0).round().astype(int)
    np.testing.assert_array_equal(pasted[y, x], (0, 255, 0))
    changed = np.argwhere((pasted != np.asarray(photo)).any(axis=2))
    low, high = face.quad.min(0)[::-1], face.quad.max(0)[::-1]
    assert (changed >= low - 1).all()
    assert (changed <= high + 1).all()
    assert len(changed) > 0.3 * face.side**2 * 0.5


def test_feather_makes_the_edge_softer(photo, face):
    green = Image.new("RGB", (64, 64), (0, 255, 0))
    hard, soft = (np.asarray(faces.paste(photo, face, green, feather=width)) for width in (0.01, 0.15))
    pure = [int((pixels == (0, 255, 0)).all(axis=2).sum()) for pixels in (hard, soft)]
    assert pure[0] > pure[1] > 0


def test_colors_are_matched_if_asked_for(photo, face):
    crop = faces.crop(photo, face, 256)
    tinted = Image.fromarray((np.asarray(crop) * [0.6, 0.8, 1.0]).astype(np.uint8))
    plain = faces.paste(photo, face, tinted)
    matched = faces.paste(photo, face, tinted, match_color=True)
    error = [np.abs(np.asarray(one, float) - np.asarray(photo, float)).mean() for one in (plain, matched)]
    assert error[1] < 0.5 * error[0]


def test_a_face_over_the_border_can_be_pasted(photo):
    cut = square((10, 10), 200, turn=20)
    assert faces.paste(photo, cut, Image.new("RGB", (32, 32))).size == photo.size
    outside = square((-900, 0), 100)
    np.testing.assert_array_equal(np.asarray(faces.paste(photo, outside, photo)), np.asarray(photo))


# Translating.


def test_run_faces_translates_the_aligned_crop(translator, photo, face):
    result = translator.run_faces(SNAPSHOT)
    crop = faces.crop(photo, face, 16)  # the tiny engine's larger side
    np.testing.assert_array_equal(np.asarray(result.faces[0].picture), np.asarray(crop))
    np.testing.assert_array_equal(np.asarray(result.results[0][0]), np.asarray(translator.run(crop)))
    assert (result.photo.size, result.pasted) == ((512, 512), [])
    assert_says(result.report, "1 face", "174x174", "turned")


def test_run_faces_can_paste_each_style(translator, photo):
    from psp_rt import StyleMix

    result = translator.run_faces(photo, paste=True, style=StyleMix.random([1, 2], layers="4-6"))
    assert len(result.results[0]) == len(result.pasted) == 2
    assert result.pasted[0].size == photo.size
    assert np.any(np.asarray(result.pasted[0]) != np.asarray(result.pasted[1]))


def test_run_faces_takes_all_faces_or_the_largest(translator, photo):
    both = Image.new("RGB", (900, 512))
    both.paste(photo.resize((300, 300), Image.Resampling.LANCZOS), (0, 100))
    both.paste(photo, (350, 0))
    largest, everyone = translator.run_faces(both), translator.run_faces(both, faces="all", paste=True)
    assert (len(largest.faces), len(everyone.faces)) == (1, 2)
    assert_says(largest.report, "largest of 2")
    assert_says(everyone.report, "2 faces")
    # Both faces are changed.
    changed = (np.asarray(everyone.pasted[0]) != np.asarray(both)).any(axis=2)
    assert changed[:, :300].any()
    assert changed[:, 350:].any()


def test_run_faces_leaves_an_aligned_picture_as_it_is(translator, photo, face):
    crop = faces.crop(photo, face, 400)
    result = translator.run_faces(crop)
    assert result.faces[0].whole
    np.testing.assert_array_equal(np.asarray(result.faces[0].picture), np.asarray(crop))
    assert_says(result.report, "already aligned")


def test_run_faces_reads_arrays_in_the_translators_order(open_translator, photo):
    rgb, bgr = (open_translator("rgb", color=color) for color in ("rgb", "bgr"))
    pixels = np.asarray(photo)
    first, second = rgb.run_faces(pixels), bgr.run_faces(pixels[..., ::-1])
    np.testing.assert_array_equal(np.asarray(first.results[0][0]), np.asarray(second.results[0][0]))


def test_run_faces_without_a_face_is_an_error(translator):
    blurred = Image.open(SNAPSHOT).convert("RGB").filter(ImageFilter.GaussianBlur(60))
    with pytest.raises(InputError) as caught:
        translator.run_faces(blurred)
    assert_says(caught, "no face")
