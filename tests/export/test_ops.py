"""The exported forms of StyleGAN2's operations equal the original ones, which `oracle` spells out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from export.graphs import ops
from tests.models import oracle

KERNEL = np.outer([1.0, 3, 3, 1], [1.0, 3, 3, 1]) / 16
LOPSIDED = np.random.default_rng(5).uniform(0, 0.5, (4, 4))  # a symmetric filter would hide a flip


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def exported_conv(x, weight, styles, *, dtype, up=None, gain=1.0):
    """Run the exported form on an unscaled weight [O, I, k, k]."""
    scaled = torch.from_numpy(weight / np.sqrt(weight[0].size)).to(dtype)
    kernel = None if up is None else torch.from_numpy(up).to(dtype)
    conv = ops.ModulatedConv(scaled, gain=gain, up=kernel)
    return conv(torch.from_numpy(x).to(dtype), torch.from_numpy(styles).to(dtype)).double().numpy()


@pytest.fixture(params=[None, KERNEL, LOPSIDED], ids=["same size", "up", "up, lopsided filter"])
def up(request):
    return request.param


TOLERANCES = [(torch.float64, 1e-10), (torch.float32, 1e-5)]


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES, ids=["float64", "float32"])
@pytest.mark.parametrize(("style_size", "weight_size"), [(1, 1), (100, 1), (1, 30), (100, 30), (1e-3, 1e-2)])
def test_a_modulated_convolution_equals_the_grouped_form(up, style_size, weight_size, dtype, tolerance):
    x, weight = drawn(3, 5, 6, 7), drawn(4, 5, 3, 3, seed=1) * weight_size
    styles = drawn(3, 5, seed=2) * style_size
    expected = oracle.modulate_and_convolve(x, weight, styles, up=up)
    found = exported_conv(x, weight, styles, dtype=dtype, up=up)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES, ids=["float64", "float32"])
def test_the_epsilon_keeps_its_size_where_it_rules(up, dtype, tolerance):
    x, weight, styles = drawn(2, 5, 6, 6), drawn(4, 5, 3, 3, seed=1) * 1e-4, drawn(2, 5, seed=2) * 3e-2
    energy = ((weight / np.sqrt(45))[None] * styles[:, None, :, None, None]) ** 2
    assert (energy.sum(axis=(2, 3, 4)) < 1e-8).all()
    expected = oracle.modulate_and_convolve(x, weight, styles, up=up)
    assert np.abs(expected).max() < 0.2  # without an epsilon it would be near one
    found = exported_conv(x, weight, styles, dtype=dtype, up=up)
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_the_gain_multiplies_the_result():
    x, weight, styles = drawn(2, 5, 6, 6), drawn(4, 5, 3, 3, seed=1), drawn(2, 5, seed=2)
    found = exported_conv(x, weight, styles, dtype=torch.float64, gain=2**0.5)
    expected = oracle.modulate_and_convolve(x, weight, styles) * 2**0.5
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_output_channel_without_weights_stays_zero(up, dtype):
    x, weight, styles = drawn(2, 5, 6, 6), drawn(4, 5, 3, 3, seed=1), drawn(2, 5, seed=2)
    weight[2] = 0
    found = exported_conv(x, weight, styles, dtype=dtype, up=up)
    assert (found[:, 2] == 0).all()
    np.testing.assert_allclose(
        found, oracle.modulate_and_convolve(x, weight, styles, up=up), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_style_of_zeros_gives_zeros(up, dtype):
    x, weight, styles = drawn(2, 5, 6, 6), drawn(4, 5, 3, 3, seed=1), drawn(2, 5, seed=2)
    styles[1] = 0
    found = exported_conv(x, weight, styles, dtype=dtype, up=up)
    np.testing.assert_allclose(
        found, oracle.modulate_and_convolve(x, weight, styles, up=up), rtol=0, atol=1e-4
    )


def test_the_convolution_gives_no_more_than_it_takes(up):
    """What FP16 needs: the large numbers cancel before they meet, not after."""
    x = torch.ones(1, 64, 8, 8)
    weight, styles = drawn(16, 64, 3, 3) * 30, drawn(1, 64, seed=1) * 100
    conv = ops.ModulatedConv(
        torch.from_numpy(weight / 24).float(), up=None if up is None else torch.from_numpy(up).float()
    )
    seen = []
    convolve = F.conv2d if up is None else F.conv_transpose2d

    def record(x, weight, *rest, **options):
        seen.append(convolve(x, weight, *rest, **options))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, convolve.__name__, record)
        conv(x, torch.from_numpy(styles).float())
    assert 0.01 < seen[0].abs().max() <= 1  # of an input of ones


@pytest.mark.parametrize("kernel", [KERNEL, LOPSIDED], ids=["the filter", "a lopsided filter"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 3, 5, 8), (1, 3, 1, 1)])
def test_doubling_a_picture_equals_upfirdn(kernel, shape):
    picture = drawn(*shape)
    expected = oracle.upfirdn(picture, kernel, up=2, pad=(2, 1))
    upsample = ops.Upsample(torch.from_numpy(kernel)).double()
    np.testing.assert_allclose(upsample(torch.from_numpy(picture)).numpy(), expected, rtol=0, atol=1e-6)


def test_doubling_keeps_a_plain_picture_plain():
    plain = torch.full((1, 3, 6, 6), 0.75)
    doubled = ops.Upsample(torch.from_numpy(KERNEL).float())(plain)
    torch.testing.assert_close(doubled[:, :, 2:-2, 2:-2], torch.full((1, 3, 8, 8), 0.75))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 16), (7, 14), (4, 4)])
def test_average_pooling_equals_the_windows_of_pytorch(height, width):
    x = torch.from_numpy(drawn(2, 3, height, width))
    found = ops.AveragePool((height, width), pooled=7).double()(x)
    torch.testing.assert_close(found, F.adaptive_avg_pool2d(x, (7, 7)), rtol=0, atol=1e-6)
