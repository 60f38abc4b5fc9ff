"""Adaptive discriminator augmentation: every transform is what its name says."""

import math

import numpy as np
import pytest
import torch

from trainer.generator import augment

RED, GREEN, BLUE = (1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)


@pytest.fixture
def pictures():
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def values(*numbers):
    return np.array(numbers, dtype=float)


def moved(picture, matrix):
    return augment.resample(picture[:1], matrix)[0]


def recolored(color, matrix):
    picture = torch.tensor(color).reshape(1, 3, 1, 1)
    return augment.recolor(picture, matrix).flatten().tolist()


def drawn(draw, count=4000, **settings):
    return draw(np.random.default_rng(0), count, **settings)


def test_with_probability_zero_pictures_stay_as_they_are(pictures):
    rng = np.random.default_rng(0)
    assert augment.augment(pictures, probability=0, rng=rng) is pictures
    nearly_zero = augment.augment(pictures, probability=1e-12, rng=rng)
    torch.testing.assert_close(nearly_zero, pictures, rtol=0, atol=1e-5)


def test_with_probability_one_every_picture_changes_differently(pictures):
    same = pictures[:1].expand(6, -1, -1, -1)
    changed = augment.augment(same, probability=1, rng=np.random.default_rng(0))
    distances = (changed[:, None] - changed[None]).abs().mean(dim=(2, 3, 4)) + torch.eye(6)
    assert distances.min() > 0.05
    assert (changed - same).abs().mean(dim=(1, 2, 3)).min() > 0.05


def test_augmentation_follows_from_its_random_generator_alone(pictures):
    first = augment.augment(pictures, probability=0.7, rng=np.random.default_rng(3))
    torch.manual_seed(99)
    again = augment.augment(pictures, probability=0.7, rng=np.random.default_rng(3))
    torch.testing.assert_close(first, again, rtol=0, atol=0)


def test_each_transform_happens_with_its_probability_and_alone():
    matrices = augment.draw_all([augment.brightness], np.random.default_rng(0), count=4000, probability=0.3)
    share = (np.abs(matrices - np.eye(4)).max(axis=(1, 2)) > 0).mean()
    assert share == pytest.approx(0.3, abs=0.03)


def test_a_flip_mirrors_and_quarter_turns_turn(pictures):
    mirrored = moved(pictures, augment.scaled(values(-1), values(1)))
    torch.testing.assert_close(mirrored, pictures[0].flip(2), rtol=0, atol=1e-5)
    for quarters in range(4):
        result = moved(pictures, augment.turned(values(quarters * math.pi / 2)))
        expected = torch.rot90(pictures[0], quarters, dims=(1, 2))
        torch.testing.assert_close(result, expected, rtol=0, atol=2e-5)


def test_flips_and_quarter_turns_come_equally_often():
    signs, counts = np.unique(drawn(augment.flip)[:, 0, 0], return_counts=True)
    assert signs.tolist() == [-1, 1]
    assert counts.min() > 1800
    _, counts = np.unique(drawn(augment.quarter_turn)[:, :2, :2], axis=0, return_counts=True)
    assert len(counts) == 4
    assert counts.min() > 900


def test_a_shift_moves_right_and_down_and_mirrors_the_edge(pictures):
    result = moved(pictures, augment.shifted(values(2 / 16), values(3 / 16)))
    torch.testing.assert_close(result[:, 3:, 2:], pictures[0][:, :-3, :-2], rtol=0, atol=2e-5)
    torch.testing.assert_close(result[:, 3:, 0], pictures[0][:, :-3, 1], rtol=0, atol=2e-5)


def test_whole_shifts_are_whole_pixels_of_at_most_an_eighth():
    pixels = drawn(augment.whole_shift, size=32)[:, :2, 2] * 16
    np.testing.assert_allclose(pixels, pixels.round(), atol=1e-9)
    assert set(np.abs(pixels.round()).ravel()) == {0, 1, 2, 3, 4}


def test_a_zoom_enlarges_the_middle_and_a_stretch_keeps_the_area(pictures):
    small = torch.zeros(1, 1, 16, 16)
    small[..., 6:10, 6:10] = 1
    zoomed = augment.resample(small, augment.scaled(values(2), values(2)))
    assert zoomed.sum() == pytest.approx(4 * 16)
    assert zoomed[0, 0, 8, 4:12].tolist() == pytest.approx([0.75, 1, 1, 1, 1, 1, 1, 0.75], abs=0.3)
    np.testing.assert_allclose(np.linalg.det(drawn(augment.stretch)), 1)
    np.testing.assert_allclose(np.log2(1 / drawn(augment.zoom)[:, 0, 0]).std(), 0.2, rtol=0.05)


def test_random_turns_cover_the_circle_and_random_shifts_an_eighth_of_the_side():
    turns = drawn(augment.turn)
    assert np.histogram(np.arctan2(turns[:, 1, 0], turns[:, 0, 0]), bins=8)[0].min() > 400
    np.testing.assert_allclose((drawn(augment.shift)[:, 0, 2] / 2).std(), 0.125, rtol=0.05)


def test_brightness_adds_and_contrast_multiplies():
    assert recolored((0.1, 0.2, 0.3), augment.brightened(values(0.5))) == pytest.approx([0.6, 0.7, 0.8])
    assert recolored((0.1, 0.2, 0.3), augment.contrasted(values(2))) == pytest.approx([0.2, 0.4, 0.6])


def test_a_luma_flip_exchanges_light_and_dark_and_keeps_the_hue():
    matrix = augment.lightened(values(-1))
    assert recolored((0.4, 0.4, 0.4), matrix) == pytest.approx([-0.4] * 3)
    assert recolored((0.3, 0, -0.3), matrix) == pytest.approx([0.3, 0, -0.3])


def test_a_third_of_a_hue_turn_takes_red_to_green_and_green_to_blue():
    matrix = augment.hue_turned(values(2 * math.pi / 3))
    assert recolored(RED, matrix) == pytest.approx(GREEN, abs=1e-6)
    assert recolored(GREEN, matrix) == pytest.approx(BLUE, abs=1e-6)
    assert recolored((0.5, 0.5, 0.5), matrix) == pytest.approx([0.5] * 3)


def test_saturation_moves_away_from_gray():
    assert recolored((0.6, 0.3, 0), augment.saturated(values(0))) == pytest.approx([0.3] * 3)
    assert recolored((0.6, 0.3, 0), augment.saturated(values(2))) == pytest.approx([0.9, 0.3, -0.3])


def test_transforms_act_in_the_order_of_the_paper():
    only = np.random.default_rng(0)
    brighter = np.array([augment.brightened(values(0.5))[0]])
    darker = np.array([augment.contrasted(values(0.5))[0]])
    product = augment.draw_all([lambda *_: darker.copy(), lambda *_: brighter.copy()], only, 1, probability=1)
    assert recolored((0, 0, 0), product) == pytest.approx([0.25] * 3)  # brightness, then contrast
    assert [draw.__name__ for draw in augment.COLORS[::-1]] == [
        "brightness",
        "contrast",
        "luma_flip",
        "hue",
        "saturation",
    ]


def test_gradients_flow_through_every_transform(pictures):
    leaf = pictures.double().requires_grad_(True)
    augment.augment(leaf, probability=1, rng=np.random.default_rng(1)).square().sum().backward()
    assert leaf.grad is not None
    analytic = leaf.grad[0, 0, 8, 8].item()

    def total(offset):
        changed = pictures.double().clone()
        changed[0, 0, 8, 8] += offset
        result = augment.augment(changed, probability=1, rng=np.random.default_rng(1))
        return result.double().square().sum().item()

    assert analytic == pytest.approx((total(0.01) - total(-0.01)) / 0.02, rel=0.02)
    assert abs(analytic) > 0.01


def test_the_probability_rises_when_real_pictures_are_recognised_and_falls_when_not():
    assert augment.adjusted(0.1, 0.9, images=1000) == pytest.approx(0.102)
    assert augment.adjusted(0.1, 0.2, images=1000) == pytest.approx(0.098)
    assert augment.adjusted(0.1, 0.6, images=1000) == 0.1
    assert augment.adjusted(0.0, -1.0, images=1000) == 0
    assert augment.adjusted(1.0, 1.0, images=1000) == 1
