"""What the encoders of joint training read, made from the photo."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from psp_rt.images import resize
from trainer.data import inputs
from trainer.data import photos as data
from trainer.data.photos import Batch, Pixels

TASKS = {"sketch": "gray", "inversion": "rgb", "super-resolution": "rgb"}  # task -> kind of input
FACTORS = (2, 4, 8)  # of super-resolution: how many times smaller than it is shown the input may be


class Pairs(Protocol):
    """Inputs and the photos that should come of them."""

    def __len__(self) -> int: ...

    def batch(self, images_seen: int, batch_size: int) -> Batch:
        """Return the pairs that follow after `images_seen`, varied for training."""

    def plain(self, indices: NDArray[np.int64]) -> Batch:
        """Return the pairs of the given photos, unvaried: for looking and for measuring."""


@dataclass(frozen=True, kw_only=True)
class PhotoPairs:
    """The photo itself, or a version of lower resolution, in; the photo out."""

    photos: Pixels  # [N, H, W, 3]
    input_size: int
    factors: tuple[int, ...] = (1,)
    seed: int = 0

    def __len__(self) -> int:
        return len(self.photos)

    def batch(self, images_seen: int, batch_size: int) -> Batch:
        """Return the pairs that follow after `images_seen`; half of them are mirrored."""
        indices = data.positions_to_images(len(self), seed=self.seed, start=images_seen, length=batch_size)
        sources, targets = [], []
        for place, index in enumerate(indices.tolist(), start=images_seen):
            rng = np.random.default_rng([self.seed, place])
            photo = self.photos[index]
            target = photo[:, ::-1] if rng.random() < 0.5 else photo
            sources.append(self._source(target, int(rng.choice(self.factors))))
            targets.append(target)
        return Batch(sources=_scaled(np.stack(sources)), targets=_scaled(np.stack(targets)))

    def plain(self, indices: NDArray[np.int64]) -> Batch:
        """Return the photos with the middle one of the factors."""
        photos = self.photos[indices]
        factor = self.factors[len(self.factors) // 2]
        sources = np.stack([self._source(photo, factor) for photo in photos])
        return Batch(sources=_scaled(sources), targets=_scaled(photos))

    def _source(self, photo: Pixels, factor: int) -> Pixels:
        small = resize(np.ascontiguousarray(photo), self.input_size, self.input_size)
        return inputs.lower_resolution(small, factor)


def load(
    folder: Path, tasks: tuple[str, ...], *, size: int, input_size: int, seed: int, cache: Path
) -> dict[str, Pairs]:
    """Read a folder of photos, and draw their sketches into the file `cache` if a task needs them."""
    photos = data.load_photos(folder, size=size)
    found: dict[str, Pairs] = {}
    for task in tasks:
        if task == "sketch":
            sketches = data.draw_sketches(photos.paths, size=input_size, seed=seed, cache=cache)
            found[task] = data.SketchPairs(photos=photos.pixels, sketches=sketches, seed=seed)
        else:
            factors = FACTORS if task == "super-resolution" else (1,)
            found[task] = PhotoPairs(photos=photos.pixels, input_size=input_size, factors=factors, seed=seed)
    return found


def in_parts(pairs: Pairs, size: int = 32) -> Iterator[Batch]:
    """Yield all pairs, unvaried; the last part may be smaller."""
    for start in range(0, len(pairs), size):
        yield pairs.plain(np.arange(start, min(start + size, len(pairs))))


def as_picture(sources: Tensor, task: str) -> Tensor:
    """Return inputs as pictures [N, 1 or 3, H, W] in [-1, 1] for a sheet."""
    return sources * 2 - 1 if TASKS[task] == "gray" else sources


def _scaled(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
