"""Style mixing: the paper's layers, NumPy's rows, and how far each moves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psp_rt import InputError, StyleMix
from psp_rt.style import layer_rows
from tests.models import tiny_engine
from tests.models.tiny_engine import D, L


def codes(seed: int) -> np.ndarray:
    """Return a code whose mixes are exact."""
    return np.random.default_rng(seed).integers(-8, 8, (L, D)).astype(np.float32) / 4


def mixed(translator, code: np.ndarray, style: StyleMix) -> np.ndarray:
    return translator.generate(code, style)


def picture_of(code: np.ndarray) -> np.ndarray:
    return tiny_engine.generate(code[None])[0]


@pytest.mark.parametrize(
    ("layers", "rows"),
    [
        ("8-18", list(range(7, 18))),
        ("8-", list(range(7, 18))),
        ("-7", list(range(7))),
        ("4-7,9", [3, 4, 5, 6, 8]),
        ("1", [0]),
        (" 1 - 2 , 18", [0, 1, 17]),
        ("2,1-3", [0, 1, 2]),
    ],
)
def test_layers_are_the_papers_counted_from_1_and_inclusive(layers, rows):
    assert layer_rows(layers, 18) == rows


@pytest.mark.parametrize("layers", ["", "a", "0-3", "-0", "7-4", "1 2", "1--2", "-", "1;2", "9" * 5000, 8])
def test_layers_that_mean_nothing_are_refused(layers):
    with pytest.raises(InputError, match="expected the paper's layers, such as '8-18', '8-', '-7'"):
        StyleMix(codes(0), layers=layers)


@pytest.mark.parametrize("layers", ["4-7", "7-", "-7", "7"])
def test_layers_beyond_the_model_name_their_number(translator, layers):
    with pytest.raises(InputError, match=f"layers '{layers}' go beyond this model's 6 layers; expected 1-6"):
        translator.generate(codes(0), StyleMix(codes(1), layers=layers))


def test_style_mix_goes_from_the_input_to_the_reference(translator):
    code, reference = codes(0), codes(1)
    for alpha in (0, 0.25, 0.5, 1):
        expected = picture_of((1 - np.float32(alpha)) * code + np.float32(alpha) * reference)
        np.testing.assert_array_equal(mixed(translator, code, StyleMix(reference, alpha=alpha)), expected)


def test_only_the_chosen_layers_move(translator):
    code, reference = codes(0), codes(1)
    expected = code.copy()
    expected[3:] = reference[3:]
    for style in (
        StyleMix(reference, layers="4-"),
        StyleMix(reference, rows=slice(3, None)),
        StyleMix(reference, rows=[3, 4, 5]),
        StyleMix(reference, rows=[-1, -2, -3]),
    ):
        np.testing.assert_array_equal(mixed(translator, code, style), picture_of(expected))


def test_each_row_may_have_its_own_alpha(translator):
    code, reference = codes(0), codes(1)
    expected = code.copy()
    expected[1] = 0.5 * code[1] + 0.5 * reference[1]
    expected[4] = 0.25 * code[4] + 0.75 * reference[4]
    style = StyleMix(reference, rows=[1, 4], alpha=[0.5, 0.75])
    np.testing.assert_array_equal(mixed(translator, code, style), picture_of(expected))


def test_a_style_of_one_row_moves_every_row(translator):
    w = codes(1)[0]
    np.testing.assert_array_equal(mixed(translator, codes(0), StyleMix(w)), picture_of(np.tile(w, (L, 1))))


def test_several_references_give_a_result_each(translator):
    code, references = codes(0), np.stack([codes(1), codes(2), codes(3)])
    found = mixed(translator, code, StyleMix(references))
    np.testing.assert_array_equal(found, tiny_engine.generate(references))
    rows = references[:, :1]  # [K, 1, D]
    found = mixed(translator, code, StyleMix(rows))
    np.testing.assert_array_equal(found, tiny_engine.generate(np.repeat(rows, L, axis=1)))


def test_one_seed_gives_one_result_and_several_give_several(translator):
    one = translator.generate(codes(0), StyleMix.random(5, layers="1-"))
    several = translator.generate(codes(0), StyleMix.random([4, 5], layers="1-"))
    np.testing.assert_array_equal(one, several[1])
    np.testing.assert_array_equal(one, translator.generate(translator.sample(5)))


def test_random_styles_move_the_papers_layers_from_8_on():
    assert StyleMix.random([1]).weights(18).tolist() == [0] * 7 + [1] * 11


def test_the_same_mix_fits_every_model():
    style = StyleMix(np.zeros(D, np.float32), layers="4-")
    assert style.weights(6).tolist() == [0, 0, 0, 1, 1, 1]
    assert style.weights(4).tolist() == [0, 0, 0, 1]


def test_layers_and_rows_together_are_refused():
    with pytest.raises(InputError, match="both layers and rows are given; pass one of them"):
        StyleMix(codes(0), layers="1", rows=[0])


@pytest.mark.parametrize("rows", [[6], 7, "x", [0.5], {"a": 1}])
def test_rows_beyond_the_code_name_the_range(translator, rows):
    with pytest.raises(InputError, match="expected row numbers from 0 to 5"):
        translator.generate(codes(0), StyleMix(codes(1), rows=rows))


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), [[1.0]], "x", None])
def test_an_alpha_that_is_no_number_is_refused(alpha):
    with pytest.raises(InputError, match="expected a number, or one for each moved row"):
        StyleMix(codes(0), alpha=alpha)


def test_the_wrong_number_of_alphas_names_both(translator):
    with pytest.raises(InputError, match="alpha has 2 values for 3 moved rows; expected one for each"):
        translator.generate(codes(0), StyleMix(codes(1), layers="4-", alpha=[1, 0]))


@pytest.mark.parametrize("shape", [(D + 1,), (L + 1, D), (L, D - 1), (2, L - 1, D)])
def test_a_reference_of_the_wrong_shape_names_the_expected_ones(translator, shape):
    with pytest.raises(InputError, match=r"expected \[8\], \[6, 8\] or \[K, 6, 8\]"):
        translator.generate(codes(0), StyleMix(np.zeros(shape, np.float32)))


@pytest.mark.parametrize("seeds", [-1, [1, -2], [1.5], ["a"], [None]])
def test_a_seed_that_is_no_whole_number_is_refused(seeds):
    with pytest.raises(InputError, match="expected a whole number from 0 up"):
        StyleMix.random(seeds)


def test_no_seeds_are_refused():
    with pytest.raises(InputError, match=r"there are no seeds; pass at least one, such as StyleMix\.random"):
        StyleMix.random([])


@pytest.mark.parametrize("picture", ["friend.png", Path("friend.png"), Image.new("RGB", (4, 4))])
def test_a_picture_as_the_reference_is_told_how_to_become_one(picture):
    with pytest.raises(InputError, match=r"is a picture; its code is translator\.encode\(picture\)"):
        StyleMix(picture, layers="3-")
