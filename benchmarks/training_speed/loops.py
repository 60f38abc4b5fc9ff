"""The training loops of this project, as benchmarks/training.py times them."""

import copy
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.data import inputs
from trainer.data.pairs import Batch, TrainingSet, ahead
from trainer.data.real_photos import RealPhotos
from trainer.encoder.run import Run
from trainer.encoder.training import load_parts, train_step
from trainer.generator.config import GanConfig
from trainer.generator.run import Run as GanRun
from trainer.generator.step import Forward
from trainer.generator.step import train_step as gan_step
from trainer.loop import average
from trainer.loop.distributed import Team
from trainer.losses.criterion import Criterion
from trainer.networks import Generator
from trainer.recipe import Recipe


@dataclass
class Spent:
    """Seconds of a loop, by what they went into; the rest is what a step does besides."""

    data: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Files:
    """What a loop learns from."""

    images: Path
    pairs: Path | None = None


class OurEncoderLoop:
    """`python -m trainer encoder`: photos in memory, batches made ahead, channels last."""

    def __init__(
        self, recipe: Recipe, generator: Generator, criterion: Criterion, files: Files, device: torch.device
    ) -> None:
        self._team, self._criterion, self.spent = Team(device=device), criterion, Spent()
        self._data = TrainingSet.load(recipe, files.images, files.pairs)
        self._run = Run.start(recipe, copy.deepcopy(generator), generator.mean_style(), device=device)

    def steps(self, count: int) -> None:
        """Take steps. No batch is ready when it begins: none was made while others were timed."""
        started, run = time.perf_counter(), self._run
        places = itertools.islice(itertools.count(run.images_seen, run.recipe.batch), count)
        batches = ahead(lambda place: load_parts(self._data, place, self._team), places)
        for _ in range(count):
            waiting = time.perf_counter()
            parts = next(batches)
            self.spent.data += time.perf_counter() - waiting
            train_step(run, run.encoder, self._criterion, parts, self._team)
        batches.close()  # type: ignore[attr-defined]  # a generator
        wait(self._team.device)
        self.spent.total += time.perf_counter() - started

    def networks_share(self, count: int) -> float:
        """Return the part of a step, its data at hand, that encoder, generator and losses take."""
        run, team = self._run, self._team
        parts = load_parts(self._data, 0, team)
        whole = seconds(
            lambda: train_step(run, run.encoder, self._criterion, parts, team), count, team.device
        )
        rest = seconds(run.optimizer.step, count, team.device)
        rest += seconds(
            lambda: average.update(run.model.encoder, run.encoder, images=1, images_seen=10**6),
            count,
            team.device,
        )
        rest += seconds(lambda: [move(part, run.recipe, team.device) for part in parts], count, team.device)
        return 1 - rest / whole


class OurGeneratorLoop:
    """`python -m trainer generator`: photos on the device, mixed precision, channels last."""

    def __init__(self, config: GanConfig, files: Files, device: torch.device) -> None:
        self._team, self.spent = Team(device=device), Spent()
        self._photos = RealPhotos.load(files.images, size=config.size, device=device)
        self._run = GanRun.start(config, device=device)
        self._forward = Forward.of(self._run)

    def steps(self, count: int) -> None:
        """Take steps."""
        started = time.perf_counter()
        for _ in range(count):
            gan_step(self._run, self._forward, self._photos, self._team)
        wait(self._team.device)
        self.spent.total += time.perf_counter() - started

    def networks_share(self, count: int) -> float:
        """Return the part of a step that is neither photos, optimisers nor the average."""
        run, team, config = self._run, self._team, self._run.config
        whole = seconds(lambda: gan_step(run, self._forward, self._photos, team), count, team.device)
        photos = seconds(
            lambda: self._photos.batch(0, config.batch, mirror=config.mirror), count, team.device
        )
        rest = photos
        for each in (run.discriminator_optimizer, run.generator_optimizer):
            rest += seconds(each.step, count, team.device)
        rest += seconds(
            lambda: average.update(run.average, run.generator, images=1, images_seen=10**6),
            count,
            team.device,
        )
        self.spent.data = self.spent.total * photos / whole
        return 1 - rest / whole


def move(batch: Batch, recipe: Recipe, device: torch.device) -> tuple[Tensor, Tensor]:
    """Turn bytes into what the networks read, on their device."""
    moved = batch.to(device)
    return inputs.to_network(moved.sources, recipe), inputs.to_target(moved.targets)


def seconds(call: Callable[[], object], count: int, device: torch.device) -> float:
    """Return the mean time of a call, waited for."""
    call()
    wait(device)
    started = time.perf_counter()
    for _ in range(count):
        call()
    wait(device)
    return (time.perf_counter() - started) / count


def wait(device: torch.device) -> None:
    """Let a GPU finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
