"""The running average of a network's weights."""

import copy

import pytest
import torch
from torch import nn

from trainer.loop import average


def averaged(start, value, **settings):
    """Move an average whose weights are all `start` towards a network whose weights are all `value`."""
    networks = [nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(2)]
    for network, number in zip(networks, (start, value), strict=True):
        for parameter in network.parameters():
            nn.init.constant_(parameter, number)
    networks[1][1].running_mean.fill_(7)
    networks[1][1].num_batches_tracked.fill_(3)
    before = copy.deepcopy(networks[1].state_dict())
    average.update(*networks, **settings)
    torch.testing.assert_close(networks[1].state_dict(), before)
    return networks[0]


def test_after_its_half_life_an_average_is_halfway():
    moved = averaged(0.0, 1.0, images=10_000, images_seen=10_000_000, halflife_images=10e3)
    assert all((parameter == 0.5).all() for parameter in moved.parameters())


def test_many_small_steps_move_as_far_as_one_large_step():
    whole = average.decay(images=640, images_seen=10_000_000)
    part = average.decay(images=32, images_seen=10_000_000)
    assert part**20 == pytest.approx(whole)


def test_early_on_the_half_life_is_a_twentieth_of_what_was_seen():
    assert average.decay(images=50, images_seen=1000) == 0.5
    assert average.decay(images=16, images_seen=16) < 1e-5  # the first weights leave no trace


def test_statistics_of_the_learning_weights_are_not_taken_over():
    moved = averaged(0.0, 1.0, images=1, images_seen=10_000_000)
    assert moved[1].running_mean.tolist() == [0, 0]
    assert moved[1].num_batches_tracked == 0


def test_an_averaged_network_gets_statistics_of_its_own():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    batches = [torch.rand(5, 3, 8, 8), torch.rand(7, 3, 8, 8)]
    average.calibrate(network, iter(batches))
    maps = [network[0](batch) for batch in batches]
    mean = torch.stack([each.mean(dim=(0, 2, 3)) for each in maps]).mean(dim=0)
    variance = torch.stack([each.var(dim=(0, 2, 3)) for each in maps]).mean(dim=0)
    torch.testing.assert_close(network[1].running_mean, mean)
    torch.testing.assert_close(network[1].running_var, variance)
    assert not network.training
    assert network[1].momentum == 0.1  # as before
