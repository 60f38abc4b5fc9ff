"""Warnings about pictures that a model was not made for: squeezed, enlarged, strange."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from psp_rt import FormatError, InputError, InputWarning, Translator, write_engine
from psp_rt.cli.main import main
from psp_rt.engine.statistics import CODES, STYLES, Statistics
from tests.messages import assert_says
from tests.models import tiny_engine
from tests.models.tiny_engine import HEIGHT, WIDTH, D, L

PICTURES = np.random.default_rng(0).integers(0, 256, (200, HEIGHT, WIDTH, 3), np.uint8)


def build(path, *, limit=None, task="test", members=None, **changes):
    codes = tiny_engine.encode(PICTURES)
    statistics = {CODES: Statistics.of(codes).to_bytes()} if limit else {}
    manifest = replace(tiny_engine.manifest(), strange_above=limit, task=task, **changes)
    write_engine(path, manifest, tiny_engine.members() | statistics | (members or {}))
    return path


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    with Translator(build(tmp_path_factory.mktemp("checks") / "a.engine"), color="rgb") as opened:
        yield opened


def caught(call):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [warning.message for warning in found]


@pytest.mark.parametrize("call", ["run", "encode", "stream"])
def test_a_squeezed_picture_is_a_warning_with_its_figures(translator, call):
    frame = np.zeros((HEIGHT, 2 * WIDTH, 3), np.uint8)
    given = [frame] if call == "stream" else frame
    (found,) = caught(lambda: list(getattr(translator, call)(given)))
    assert (type(found), found.kind, found.value, found.limit) == (InputWarning, "squeezed", 0.5, 0.1)
    assert_says(str(found), f"{2 * WIDTH} x {HEIGHT}", "50%", "width", f"{WIDTH} x {HEIGHT}", "crop")


@pytest.mark.parametrize(
    "shape", [(HEIGHT, WIDTH), (4 * HEIGHT, 4 * WIDTH), (15, 12), (HEIGHT // 4, WIDTH // 4)]
)
def test_a_picture_of_nearly_the_right_shape_gives_none(translator, shape):
    assert caught(lambda: translator.run(np.zeros((*shape, 3), np.uint8))) == []


def test_a_small_picture_is_a_warning_unless_the_model_is_made_for_them(translator, tmp_path):
    small = Image.new("RGB", (2, 3))
    squeezed, found = caught(lambda: translator.run([Image.new("RGB", (WIDTH, HEIGHT)), small]))
    assert (squeezed.kind, found.kind, found.value) == ("squeezed", "upscaled", 6.0)
    assert_says(str(found), "picture 1", "2 x 3", "6.0 times")
    with Translator(build(tmp_path / "sr.engine", task="super-resolution")) as other:
        assert [found.kind for found in caught(lambda: other.run(small))] == ["squeezed"]


def test_a_strange_code_is_a_warning_with_its_distance(tmp_path):
    with Translator(build(tmp_path / "a.engine", limit=1.3), color="rgb") as strict:
        assert caught(lambda: strict.run(PICTURES[:20])) == []
        white = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
        for call in (lambda: strict.run([PICTURES[0], white]), lambda: strict.encode([PICTURES[0], white])):
            (found,) = caught(call)
            assert (found.kind, found.limit) == ("strange", 1.3)
            assert found.value == pytest.approx(
                Statistics.of(tiny_engine.encode(PICTURES)).distance(tiny_engine.encode(white[None]))[0]
            )
            assert_says(str(found), "picture 1", f"{found.value:.2f}", "1.30")


def test_a_filter_makes_warnings_errors_and_they_name_the_callers_line(translator):
    wide = np.zeros((HEIGHT, 2 * WIDTH, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        with pytest.raises(InputWarning):
            translator.run(wide)
    with pytest.warns(InputWarning) as found:
        translator.run(wide)
    assert found[0].filename == __file__
    assert translator.run(PICTURES[0]).shape  # the translator still works


def test_a_strange_array_is_a_hint_at_the_order_of_its_channels(tmp_path):
    strange = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    path = build(tmp_path / "a.engine", limit=1.3)
    for color, picture, hinted in (
        ("bgr", strange, True),
        ("rgb", strange, False),
        ("bgr", Image.fromarray(strange), False),
    ):
        with Translator(path, color=color) as translator:
            (found,) = caught(lambda: translator.run(picture))  # noqa: B023
            assert ("color='rgb'" in str(found)) == hinted


def test_statistics_come_back_and_damaged_ones_are_refused(tmp_path):
    known = Statistics.of(np.random.default_rng(1).standard_normal((50, L, D)).astype(np.float32))
    again = Statistics.from_bytes(known.to_bytes(), L, D, member=CODES)
    np.testing.assert_array_equal(again.mean, known.mean)
    np.testing.assert_array_equal(again.spread, known.spread)
    for data in (bytes(8 * D - 1), b"\xff" * 8 * D, np.full(2 * D, -1, "<f4").tobytes()):
        with pytest.raises(FormatError) as refused:
            Translator(build(tmp_path / "a.engine", members={STYLES: data}))
        assert_says(refused, STYLES, len(data), 8 * D, "export")


def test_a_spread_of_zero_does_not_decide_alone():
    values = np.random.default_rng(2).standard_normal((100, 1, D)).astype(np.float32)
    values[:, :, 0] = 1
    known = Statistics.of(values)
    assert np.isfinite(known.distance(values)).all()
    assert known.distance(values).max() < 4


@pytest.mark.parametrize("limit", [0, -1, "x", True])
def test_a_manifest_with_an_impossible_limit_is_refused(tmp_path, limit):
    path = tiny_engine.write_raw(tmp_path / "a.engine", tiny_engine.members(), strange_above=limit)
    with pytest.raises(FormatError, match="strange_above"):
        Translator(path)


def test_the_command_prints_one_line_with_the_pictures_name(tmp_path, capsys):
    engine = build(tmp_path / "a.engine")
    Image.new("RGB", (2 * WIDTH, HEIGHT)).save(tmp_path / "wide.png")
    words = [
        "run",
        engine,
        tmp_path / "wide.png",
        "--output",
        tmp_path / "out.png",
        "--truncation",
        "0.5:1-2",
    ]
    main([str(word) for word in words], standalone_mode=False)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "squeezed" in line]
    assert line.startswith("wide.png: ")
    with Translator(engine) as translator, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = translator.run(tmp_path / "wide.png", truncation=(0.5, "1-2"))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.png")), np.asarray(expected))


def test_faces_are_for_models_of_photos(tmp_path):
    drawings = Translator(tiny_engine.build(tmp_path / "a.engine", "gray"))
    with drawings, pytest.raises(InputError) as refused:
        drawings.run_faces(np.zeros((9, 9, 3), np.uint8))
    assert_says(refused, "gray", "run()")
