"""The truncation trick on codes, random styles and mixes, on every backend."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from psp_rt import InputError, StyleMix, Translator, write_engine
from psp_rt.engine.statistics import STYLES, Statistics
from psp_rt.truncation import strengths, truncate, truncated_mix
from tests.messages import assert_says
from tests.models import tiny_engine
from tests.models.tiny_engine import HEIGHT, WIDTH, D, L

PICTURE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
MEAN = np.linspace(-1, 1, D).astype(np.float32)


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def translator(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("truncation") / "a.engine"
    known = Statistics(mean=MEAN, spread=np.ones(D, np.float32))
    write_engine(path, tiny_engine.manifest(), tiny_engine.members() | {STYLES: known.to_bytes()})
    with Translator(path, backend=request.param, color="rgb") as opened:
        yield opened


def test_a_mix_of_truncated_codes_is_a_truncated_mix():
    rng = np.random.default_rng(1)
    code, average = rng.standard_normal((2, L, D)).astype(np.float32)
    reference = rng.standard_normal((3, L, D)).astype(np.float32)
    weights = np.stack([np.zeros(L), np.ones(L), np.linspace(0, 1, L)]).astype(np.float32)
    psi = np.array([1, 0, 0.5, 0.99, 1, 0.3], np.float32)
    moved, towards = truncated_mix(reference, weights, average, psi)
    found = (1 - towards[..., None]) * code + towards[..., None] * moved
    kept = truncate(code, average, psi)
    mixed = (1 - weights[..., None]) * kept + weights[..., None] * truncate(reference, average, psi)
    np.testing.assert_allclose(found, mixed, atol=1e-5)


@pytest.mark.parametrize("truncation", [0.5, (0.25, "2-3"), 0, 1.0])
def test_run_generate_and_stream_truncate_alike(translator, truncation):
    code = translator.encode(PICTURE)
    moved = truncate(code, translator.average_code, strengths(truncation, L))
    expected = translator.generate(moved).astype(int)
    for found in (
        translator.run(PICTURE, truncation=truncation),
        translator.generate(code, truncation=truncation),
        next(translator.stream([PICTURE], truncation=truncation)),
    ):
        assert np.abs(found - expected).max() <= 1


def test_styles_mixed_in_are_truncated_too(translator):
    style = StyleMix.random([4, 5], layers="2-4", alpha=0.5)
    found = translator.run(PICTURE, style=style, truncation=0.5)
    codes = np.stack([translator.encode(PICTURE)] * 2)
    codes[:, 1:4] = (codes[:, 1:4] + translator.sample([4, 5])[:, 1:4]) / 2
    expected = translator.generate(truncate(codes, translator.average_code, strengths(0.5, L)))
    assert np.abs(found.astype(int) - expected).max() <= 1
    again = translator.run(PICTURE, style=style, truncation=0.9)  # not what is remembered of the last call
    assert not np.array_equal(found, again)


def test_samples_move_towards_the_stored_average(translator):
    np.testing.assert_array_equal(translator.average_code, np.tile(MEAN, (L, 1)))
    whole, half = translator.sample([1, 2]), translator.sample([1, 2], truncation=0.5)
    np.testing.assert_allclose(half, (whole + MEAN) / 2, atol=1e-6)
    np.testing.assert_allclose(translator.sample(1, truncation=0), translator.average_code, atol=1e-7)


def test_an_engine_without_an_average_averages_seeds(tmp_path):
    with Translator(tiny_engine.build(tmp_path / "a.engine", None)) as translator:
        expected = translator.sample(range(1024)).mean(0)
        np.testing.assert_allclose(translator.average_code, expected, atol=1e-5)


@pytest.mark.parametrize("wrong", [1.5, -0.1, float("nan"), "0.5", (0.5,), (0.5, "9-"), True, (0.5, 3)])
def test_what_is_no_truncation_is_a_message(translator, wrong):
    for call in (
        lambda: translator.run(PICTURE, truncation=wrong),
        lambda: translator.sample(1, truncation=wrong),
        lambda: translator.stream([PICTURE], truncation=wrong),
    ):
        with pytest.raises(InputError) as refused:
            call()
        assert_says(refused, "expected")


def test_a_changed_style_is_not_confused_with_the_last(translator):
    style = StyleMix(translator.sample(1))
    first = translator.run(PICTURE, style=style, truncation=0.5)
    style.reference[:] = translator.sample(2)
    assert not np.array_equal(first, translator.run(PICTURE, style=style, truncation=0.5))


def test_the_manifest_says_whether_photos_need_aligned_faces():
    manifest = tiny_engine.manifest()
    assert replace(manifest, alignment="ffhq").expects_faces
    assert not replace(manifest, alignment="none").expects_faces
    assert not replace(tiny_engine.manifest("labels"), alignment="ffhq").expects_faces
