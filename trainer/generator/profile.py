"""Where the time of a step goes."""

import time
from collections.abc import Callable

import numpy as np
import torch

from trainer.data.real_photos import RealPhotos
from trainer.generator import augment
from trainer.generator.run import Run
from trainer.generator.step import Forward, train_step
from trainer.loop import average
from trainer.loop.distributed import Team

AUGMENTED = 0.5  # probability while measuring: at 0 there would be nothing to measure


def measure(
    run: Run, forward: Forward, photos: RealPhotos, team: Team, *, steps: int = 32
) -> dict[str, float]:
    """Return milliseconds of a step and of all that is not networks, and the networks' share.

    The parts are timed one by one, each waited for. In training a GPU does much of that while
    it computes, so the share is a lower bound. The run is changed and must not be saved.
    """
    run.augmentation = AUGMENTED
    config, count = run.config, run.config.pass_size(team.size)
    passes, rng = config.accumulate, np.random.default_rng(0)

    def augment_and_back() -> None:
        leaf = pictures.clone().requires_grad_(True)
        augment.augment(leaf, probability=AUGMENTED, rng=rng).sum().backward()

    train_step(run, forward, photos, team)  # leaves gradients for the optimisers
    pictures = photos.batch(0, count, mirror=config.mirror)
    parts: dict[str, tuple[Callable[[], object], float]] = {
        "photos": (
            lambda: photos.batch(0, count, mirror=config.mirror),
            passes * (1 + 1 / config.r1_interval),
        ),
        "augmentation": (augment_and_back, passes * (3 + 1 / config.r1_interval)),
        "discriminator optimizer": (run.discriminator_optimizer.step, 1 + 1 / config.r1_interval),
        "generator optimizer": (
            run.generator_optimizer.step,
            1 + (1 / config.path_interval if config.path_weight else 0),
        ),
        "average": (lambda: average.update(run.average, run.generator, images=1, images_seen=10**6), 1),
    }
    times = {name: _milliseconds(call, team, steps) * often for name, (call, often) in parts.items()}
    step = _milliseconds(lambda: train_step(run, forward, photos, team), team, steps)
    return {**times, "step": step, "networks_share": 1 - sum(times.values()) / step}


def _milliseconds(call: Callable[[], object], team: Team, runs: int) -> float:
    for _ in range(2):
        call()
    _wait(team)
    started = time.perf_counter()
    for _ in range(runs):
        call()
    _wait(team)
    return (time.perf_counter() - started) / runs * 1e3


def _wait(team: Team) -> None:
    if team.device.type == "cuda":
        torch.cuda.synchronize(team.device)
