"""The training loop that most would write first, for benchmarks/training.py to compare with.

It trains the same networks by the same losses and regularises as often, but decodes each photo when
it needs it (`DataLoader` without workers), computes in FP32 in PyTorch's default memory format, and
updates the average tensor by tensor.
"""

import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.training_speed.loops import Files, Spent, wait
from psp_rt.images import Pixels, resize
from trainer.data import inputs
from trainer.data.pairs import Batch, read_partner
from trainer.encoder import optimizer
from trainer.encoder.review import pool
from trainer.generator import losses
from trainer.generator.config import GanConfig
from trainer.generator.step import draw_codes
from trainer.losses.criterion import Criterion
from trainer.networks import Encoder, Generator, draw_head_weights
from trainer.networks.discriminator import Discriminator
from trainer.recipe import Recipe


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
        self._optimizer = optimizer.create(
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
