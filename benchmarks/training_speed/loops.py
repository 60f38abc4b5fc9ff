"""The training loops that benchmarks/training.py times: ours, and plain ones to compare with.

The plain loops are what most people would write first. They train the same networks with the same losses
and regularize as often, but decode each photo when they need it (`DataLoader` without workers), compute in
FP32 in PyTorch's default memory format, and update the average tensor by tensor.
"""

import copy
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from psp_rt.images import Pixels, resize
from trainer.data import inputs
from trainer.data.pairs import Batch, TrainingSet, ahead, read_partner
from trainer.data.photos import PhotoSet
from trainer.encoder.run import Run, create_optimizer
from trainer.encoder.training import load_parts, pool, train_step
from trainer.generator import step as losses
from trainer.generator.config import GanConfig
from trainer.generator.run import Run as GanRun
from trainer.generator.step import Forward, draw_codes
from trainer.generator.step import train_step as gan_step
from trainer.loop import average
from trainer.loop.distributed import Team
from trainer.losses.criterion import Criterion
from trainer.networks import Encoder, Generator, draw_head_weights
from trainer.networks.discriminator import Discriminator
from trainer.recipe import Recipe


@dataclass
class Spent:
    """Seconds that a loop waited for data, and in total."""

    data: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Files:
    """The training data of a loop."""

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
        """Take steps. No batch is ready at the start: none was prepared while others were timed."""
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
        """Return the share of a step that encoder, generator and losses take once the data is there."""
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
        self._photos = PhotoSet.load(files.images, size=config.size, device=device)
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
        """Return the share of a step without photos, optimizers and the average."""
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
    """Turn bytes into inputs of the networks, on their device."""
    moved = batch.to(device)
    return inputs.to_network(moved.sources, recipe), inputs.to_target(moved.targets)


def seconds(call: Callable[[], object], count: int, device: torch.device) -> float:
    """Return the mean time of a call until its work is done."""
    call()
    wait(device)
    started = time.perf_counter()
    for _ in range(count):
        call()
    wait(device)
    return (time.perf_counter() - started) / count


def wait(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PlainEncoderLoop:
    """The same training, written down plainly."""

    def __init__(
        self, recipe: Recipe, generator: Generator, criterion: Criterion, files: Files, device: torch.device
    ) -> None:
        torch.manual_seed(recipe.seed)
        self._recipe, self._criterion, self._device, self.spent = recipe, criterion, device, Spent()
        self._encoder = Encoder.create(recipe.encoder_config(generator.config))
        draw_head_weights(self._encoder)
        self._encoder.to(device).train()
        self._average = copy.deepcopy(self._encoder)
        self._generator = copy.deepcopy(generator).to(device).eval().requires_grad_(False)
        self._mean = generator.mean_style().to(device)
        self._optimizer = create_optimizer(
            recipe.optimizer, self._encoder.parameters(), learning_rate=recipe.learning_rate
        )
        self._batches = endless(EncoderPhotos(recipe, files), recipe.batch)

    def steps(self, count: int) -> None:
        """Take steps."""
        started = time.perf_counter()
        for _ in range(count):
            waiting = time.perf_counter()
            batch = Batch(*next(self._batches))
            self.spent.data += time.perf_counter() - waiting
            self._step(batch)
        wait(self._device)
        self.spent.total += time.perf_counter() - started

    def _step(self, batch: Batch) -> None:
        batch = batch.to(self._device)
        offsets = self._encoder(inputs.to_network(batch.sources, self._recipe))
        pictures = self._generator(offsets + self._mean, noise=self._recipe.noise)
        targets = inputs.to_target(batch.targets)
        loss = self._criterion(pool(pictures, self._recipe.loss_size), targets, offsets)["total"]
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        follow(self._average, self._encoder)


class PlainGeneratorLoop:
    """The same training, written down plainly."""

    def __init__(self, config: GanConfig, files: Files, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self._config, self._device, self.spent, self._done = config, device, Spent(), 0
        self._generator = Generator(config.generator).to(device)
        self._discriminator = Discriminator(config.discriminator).to(device)
        self._average = copy.deepcopy(self._generator)
        self._descents = [
            torch.optim.Adam(network.parameters(), lr=config.learning_rate, betas=(0.0, 0.99))
            for network in (self._generator, self._discriminator)
        ]
        self._batches = endless(RealPictures(files, config.size), config.batch)

    def steps(self, count: int) -> None:
        """Take steps."""
        started = time.perf_counter()
        for _ in range(count):
            waiting = time.perf_counter()
            (pixels,) = next(self._batches)
            self.spent.data += time.perf_counter() - waiting
            self._step(inputs.to_target(pixels.to(self._device)))
        wait(self._device)
        self.spent.total += time.perf_counter() - started

    def _step(self, reals: Tensor) -> None:
        generator, discriminator, config = self._generator, self._discriminator, self._config
        with torch.no_grad():
            fakes = generator(draw_codes(generator, len(reals), mixing=config.mixing), noise="random")
        self._descend(1, losses.discriminator_loss(discriminator(reals), discriminator(fakes)))
        if self._done % config.r1_interval == 0:
            self._descend(1, losses.gradient_penalty(discriminator, reals) * (config.r1_weight or 0))
        codes = draw_codes(generator, len(reals), mixing=config.mixing)
        self._descend(0, losses.generator_loss(discriminator(generator(codes, noise="random"))))
        follow(self._average, generator)
        self._done += 1

    def _descend(self, number: int, loss: Tensor) -> None:
        self._descents[number].zero_grad()
        loss.backward()
        self._descents[number].step()


class EncoderPhotos(Dataset[tuple[Pixels, Pixels]]):
    """Input and target of each photo, decoded when asked for."""

    def __init__(self, recipe: Recipe, files: Files) -> None:
        self._recipe, self._paths = recipe, sorted(files.images.iterdir())
        self._partners = sorted(files.pairs.iterdir()) if files.pairs else None

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Pixels, Pixels]:
        photo, recipe = decode(self._paths[index], inputs.photo_size(self._recipe)), self._recipe
        if self._partners:
            source = read_partner(self._partners[index], recipe)
        else:
            source = inputs.make(photo, recipe, np.random.default_rng())
        return np.array(source), np.array(resize(photo, recipe.loss_size, recipe.loss_size))


class RealPictures(Dataset[tuple[Pixels]]):
    """Photos in the generator's size, decoded when asked for."""

    def __init__(self, files: Files, size: int) -> None:
        self._paths, self._size = sorted(files.images.iterdir()), size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Pixels]:
        return (decode(self._paths[index], self._size),)


def decode(path: Path, size: int) -> Pixels:
    """Return the photo of a file, [size, size, 3]."""
    with Image.open(path) as file:
        return np.array(resize(np.asarray(file.convert("RGB")), size, size))


def endless(photos: Dataset[Any], batch: int) -> Iterator[list[Tensor]]:
    """Give whole batches, over and over."""
    while True:
        yield from DataLoader(photos, batch_size=batch, shuffle=True, drop_last=True)


def follow(kept: nn.Module, network: nn.Module) -> None:
    """Move an average, tensor by tensor."""
    with torch.no_grad():
        for mine, value in zip(kept.parameters(), network.parameters(), strict=True):
            mine.lerp_(value, 0.001)
