"""The training set of an encoder: photos, and the inputs made of them or paired with them.

A batch is a function of its place in the run and of the seed, of nothing else: a resumed run, and a
run with another number of processes, sees the same pictures in the same order.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from psp_rt.errors import InputError
from psp_rt.images import load, pixels_of, resize
from trainer.data import inputs
from trainer.data import photos as data
from trainer.recipe import Recipe

Pixels = NDArray[np.uint8]
T = TypeVar("T")
R = TypeVar("R")

SHOWN = 3  # file names in a message


class Batch(NamedTuple):
    """Pictures to learn from, as bytes: the device turns them into numbers."""

    sources: Tensor  # uint8 [N, h, w, C]
    targets: Tensor  # uint8 [N, S, S, 3]

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return Batch(*(pixels.to(device, non_blocking=True) for pixels in self))

    def pinned(self) -> "Batch":
        """Return the batch in memory from which a copy to a GPU does not make the caller wait."""
        return Batch(*(pixels.pin_memory() for pixels in self))


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Photos in memory and, for paired data, the inputs that belong to them."""

    recipe: Recipe
    photos: Pixels  # [N, S, S, 3]
    partners: Pixels | None  # [N, h, w, C]
    names: tuple[str, ...]
    skipped: dict[str, str]  # file name -> reason

    @classmethod
    def load(cls, recipe: Recipe, images: Path, pairs: Path | None = None) -> "TrainingSet":
        """Read a folder of photos and, where the recipe asks for it, the folder of their partners."""
        if (recipe.source == "pairs") != (pairs is not None):
            raise InputError(
                f"the task {recipe.task} needs --pairs: the folder of inputs, named like the photos"
                if pairs is None
                else f"--pairs is given, but the recipe makes inputs from photos (source {recipe.source!r}); "
                "add --set source=pairs, or leave --pairs out"
            )
        found = data.load_photos(images, size=inputs.photo_size(recipe))
        partners = load_partners(recipe, found, images, pairs) if pairs else None
        names = tuple(path.name for path in found.paths)
        return cls(recipe=recipe, photos=found.pixels, partners=partners, names=names, skipped=found.skipped)

    def __len__(self) -> int:
        return len(self.photos)

    def batch(self, place: int, count: int) -> Batch:
        """Return the pictures at the places from `place` on."""
        seed = self.recipe.seed
        indices = data.positions_to_images(len(self), seed=seed, start=place, length=count)
        pairs = []
        for offset, index in enumerate(indices.tolist()):
            rng = np.random.default_rng([seed, place + offset])
            source, target = self._source(index, rng, vary=True), self._target(index)
            together, apart = rng.random(2) < 0.5
            if self.recipe.mirror != "none" and together:
                source = source[:, ::-1]
            if (self.recipe.mirror == "together" and together) or (self.recipe.mirror == "apart" and apart):
                target = target[:, ::-1]
            pairs.append((source, target))
        return _stack(pairs)

    def plain(self, indices: Iterable[int]) -> Batch:
        """Return pictures unmirrored and always the same, for looking and for measuring."""
        rngs = ((index, np.random.default_rng([index])) for index in indices)
        return _stack([(self._source(index, rng, vary=False), self._target(index)) for index, rng in rngs])

    def _source(self, index: int, rng: np.random.Generator, *, vary: bool) -> Pixels:
        if self.partners is not None:
            return self.partners[index]
        return inputs.make(self.photos[index], self.recipe, rng, vary=vary)

    def _target(self, index: int) -> Pixels:
        return resize(self.photos[index], self.recipe.loss_size, self.recipe.loss_size)


def load_partners(recipe: Recipe, photos: data.Photos, images: Path, folder: Path) -> Pixels:
    """Read the inputs that belong to photos, by the file's name without its ending: [N, h, w, C]."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; --pairs names the one that holds the inputs")
    files = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in data.SUFFIXES}
    wanted = [path.stem for path in photos.paths]
    known = {*wanted, *(Path(name).stem for name in photos.skipped)}
    _refuse_unmatched([stem for stem in wanted if stem not in files], images, folder)
    _refuse_unmatched([stem for stem in files if stem not in known], folder, images)
    partners = np.empty(
        (len(wanted), recipe.input_size, recipe.input_size, 1 if recipe.kind != "rgb" else 3), np.uint8
    )
    with ThreadPoolExecutor(2) as pool:
        read = pool.map(lambda stem: read_partner(files[stem], recipe), wanted)
        for index, partner in enumerate(read):
            partners[index] = partner
    return partners


def read_partner(path: Path, recipe: Recipe) -> Pixels:
    """Return one input [h, w, C]: its middle square, in the encoder's size."""
    try:
        pixels = pixels_of(load(path), recipe.kind)  # as the runtime reads what it translates
    except InputError as error:
        reason = str(error).removeprefix(f"{path} ")
        raise InputError(f"{path} cannot be used ({reason}); mend it, or take the pair out") from error
    if recipe.kind == "labels":
        _check_labels(pixels, path, recipe.labels or 0)
    side = min(pixels.shape[:2])
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    square = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    method = "nearest" if recipe.kind == "labels" else "bilinear"
    scaled = resize(square, recipe.input_size, recipe.input_size, method=method)
    return scaled.reshape(recipe.input_size, recipe.input_size, -1)


def ahead(make: Callable[[T], R], items: Iterable[T], *, threads: int = 2, in_flight: int = 4) -> Iterator[R]:
    """Make results in the background and give them in the items' order.

    Args:
        make: Called in several threads.
        items: May have no end.
        threads: At work at once.
        in_flight: Results that wait to be taken, or are being made.
    """
    cv2.setNumThreads(1)  # the threads here are parallel already
    pool = ThreadPoolExecutor(threads)
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(make, item))
            if len(pending) >= in_flight:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _stack(pairs: list[tuple[Pixels, Pixels]]) -> Batch:
    sources, targets = zip(*pairs, strict=True)
    return Batch(torch.from_numpy(np.stack(sources)), torch.from_numpy(np.stack(targets)))


def _check_labels(ids: Pixels, path: Path, labels: int) -> None:
    if ids.max() >= labels:
        raise InputError(
            f"{path} holds the label {ids.max()}, but the recipe has {labels} (0 to {labels - 1}); "
            f"mend the map, or say --set labels={int(ids.max()) + 1}"
        )


def _refuse_unmatched(stems: list[str], folder: Path, other: Path) -> None:
    if stems:
        raise InputError(
            f"{len(stems)} pictures in {folder} have no partner in {other} "
            f"({', '.join(stems[:SHOWN])}{', ...' if len(stems) > SHOWN else ''}); "
            "pairs have the same file name apart from its ending"
        )
