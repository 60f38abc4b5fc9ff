"""Beginning a run with the networks of a smaller one."""

from dataclasses import replace

import pytest
import torch

from psp_rt import InputError
from trainer.joint.config import JointConfig, small_generator
from trainer.joint.run import Run
from trainer.networks.layers import binomial_kernel, fir_upsample

SMALL = JointConfig(
    size=32,
    channels=(16, 16, 16, 8),
    style_dim=16,
    mapping_layers=3,
    input_size=32,
    tasks=("inversion",),
    widths=(8, 8, 8, 8),
    depths=(1, 1, 1, 1),
    head_width=8,
)
LARGE = replace(SMALL, size=64, channels=(16, 16, 16, 8, 8))


@pytest.fixture
def small(tmp_path):
    run = Run.start(SMALL)
    run.save_models(tmp_path)
    return run.average.eval()


@pytest.fixture
def grow(small, tmp_path):
    def into(config):
        run = Run.start(replace(config, seed=1))
        assert run.take_over(tmp_path / "inversion.pt") == "inversion"
        return run.average.eval()

    return into


@torch.no_grad()
def test_a_larger_generator_begins_with_the_smaller_ones_pictures_upsampled(small, grow):
    codes = torch.randn(2, SMALL.generator.num_styles, 16)
    more = torch.cat([codes, torch.randn(2, 2, 16)], dim=1)
    wanted = fir_upsample(small.generator(codes), binomial_kernel())
    torch.testing.assert_close(grow(LARGE).generator(more), wanted)


@torch.no_grad()
def test_a_head_for_a_new_row_begins_as_the_last_one(small, grow):
    photos = torch.rand(2, 3, 32, 32)
    known, found = small.encoders["inversion"](photos), grow(LARGE).encoders["inversion"](photos)
    torch.testing.assert_close(found, known[:, [*range(8), 7, 7]])


@torch.no_grad()
def test_a_narrower_head_loses_nothing_where_its_surplus_channels_do_nothing(small, grow, tmp_path):
    for head in small.encoders["inversion"].styles:
        for conv in head.convs[::2]:
            conv.weight[[1, 4]] = 0
            conv.bias[[1, 4]] = 0
    run = Run.start(SMALL)
    run.average.load_state_dict(small.state_dict())
    run.save_models(tmp_path)
    photos = torch.rand(2, 3, 32, 32)
    narrow = grow(replace(SMALL, head_width=6)).encoders["inversion"]
    torch.testing.assert_close(narrow(photos), small.encoders["inversion"](photos))
    assert narrow.styles[0].convs[0].weight.shape[0] == 6


@pytest.mark.parametrize(
    "change",
    [
        {"widths": (8, 8, 16, 8)},
        {"head_width": 10},
        {"size": 16, "channels": (16, 16, 16)},
        {"mapping_layers": 4},
        {"channels": (16, 16, 24, 8)},
        {"input_size": 64},
    ],
    ids=["widths", "wider heads", "smaller picture", "mapping", "channels", "input"],
)
def test_what_is_neither_larger_nor_narrower_is_refused(small, grow, change):
    with pytest.raises(InputError, match=r"inversion\.pt has other sizes than this run"):
        grow(replace(SMALL, **change))


def test_sizes_have_names():
    assert [small_generator(size).size for size in (32, 64, 128)] == [32, 64, 128]
