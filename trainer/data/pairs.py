"""Training pairs: an input, made from the photo or paired with it, and the photo.

A batch is a function of its place in the run and of the seed, of nothing else: a resumed run, and a run
with another number of processes, sees the same pictures in the same order.
"""

import hashlib
import os
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from psp_rt import pencil
from psp_rt.errors import InputError
from psp_rt.images import load, pixels_of, resize
from trainer.data import inputs, sketch
from trainer.data.photos import (
    SUFFIXES,
    Photos,
    Pixels,
    in_threads,
    load_photos,
    positions_to_images,
    read_photo,
    scale,
    show_nothing,
)
from trainer.loop.report import Show
from trainer.recipe import Recipe

T = TypeVar("T")
R = TypeVar("R")

SHOWN_FILES = 3  # in a message


class Batch(NamedTuple):
    """Pictures to learn from, as bytes: the device turns them into numbers."""

    sources: Tensor  # uint8 [N, h, w, C]
    targets: Tensor  # uint8 [N, S, S, 3]

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return Batch(*(pixels.to(device, non_blocking=True) for pixels in self))

    def pinned(self) -> "Batch":
        """Return the batch in page-locked memory, from which copies to a GPU do not block."""
        return Batch(*(pixels.pin_memory() for pixels in self))


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Photos in memory, and the inputs that belong to them unless they are made on the fly.

    Args:
        recipe: Says how an input is made.
        photos: [N, S, S, 3].
        names: File names of the photos.
        partners: Inputs that are paired with the photos, [N, h, w, C].
        drawings: Several sketches of each photo, drawn before training, [N, variants, h, w].
        skipped: File name -> why it was left out.
        fingerprint: Distinguishes this set from any other.
    """

    recipe: Recipe
    photos: Pixels
    names: tuple[str, ...] = ()
    partners: Pixels | None = None
    drawings: Pixels | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    fingerprint: str = ""

    @classmethod
    def load(
        cls, recipe: Recipe, images: Path, pairs: Path | None = None, *, show: Show = show_nothing
    ) -> "TrainingSet":
        """Read a folder of photos and, if the recipe needs it, the folder of their partners."""
        if (recipe.source == "pairs") != (pairs is not None):
            raise InputError(
                f"the task {recipe.task} needs --pairs: the folder of inputs, named like the photos"
                if pairs is None
                else f"--pairs is given, but the recipe makes inputs from photos (source {recipe.source!r}); "
                "add --set source=pairs, or leave --pairs out"
            )
        found = load_photos(images, size=inputs.photo_size(recipe), show=show)
        partners = _load_partners(recipe, found, images, pairs) if pairs else None
        return cls(
            recipe=recipe,
            photos=found.pixels,
            names=tuple(path.name for path in found.paths),
            partners=partners,
            skipped=found.skipped,
            fingerprint=found.fingerprint(*([] if partners is None else [partners])),
        )

    def __len__(self) -> int:
        return len(self.photos)

    def batch(self, place: int, count: int) -> Batch:
        """Return the pairs at the places from `place` on, varied for training."""
        seed = self.recipe.seed
        indices = positions_to_images(len(self), seed=seed, start=place, length=count)
        rngs = [np.random.default_rng([seed, place + offset]) for offset in range(count)]
        make = self._varied if self.drawings is None else self._varied_drawing
        return _stack([make(index, rng) for index, rng in zip(indices.tolist(), rngs, strict=True)])

    def plain(self, indices: Iterable[int]) -> Batch:
        """Return pairs without variations, always the same, to look at and to measure."""
        pairs = []
        for index in indices:
            if self.drawings is not None:
                source = self.drawings[index, 0][:, :, None]
            else:
                source = self._source(index, np.random.default_rng([index]), vary=False)
            pairs.append((source, self._target(index)))
        return _stack(pairs)

    def parts(self, size: int = 32) -> Iterator[Batch]:
        """Yield all pairs without variations; the last part may be smaller."""
        for start in range(0, len(self), size):
            yield self.plain(range(start, min(start + size, len(self))))

    def spread(self, count: int) -> list[int]:
        """Return the numbers of at most `count` photos from all over the set."""
        return np.unique(np.linspace(0, len(self) - 1, min(len(self), count)).astype(np.int64)).tolist()

    def _varied(self, index: int, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        source, target = self._source(index, rng, vary=True), self._target(index)
        together, apart = rng.random(2) < 0.5
        if self.recipe.mirror != "none" and together:
            source = source[:, ::-1]
        if (self.recipe.mirror == "together" and together) or (self.recipe.mirror == "apart" and apart):
            target = target[:, ::-1]
        return source, target

    def _varied_drawing(self, index: int, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        assert self.drawings is not None
        source, target = self.drawings[index, rng.integers(self.drawings.shape[1])], self._target(index)
        if rng.random() < 0.5:
            source, target = source[:, ::-1], target[:, ::-1]
        return sketch.vary(source, rng)[:, :, None], target

    def _source(self, index: int, rng: np.random.Generator, *, vary: bool) -> Pixels:
        if self.partners is not None:
            return self.partners[index]
        return inputs.make(self.photos[index], self.recipe, rng, vary=vary)

    def _target(self, index: int) -> Pixels:
        return resize(self.photos[index], self.recipe.loss_size, self.recipe.loss_size)


def _stack(pairs: list[tuple[Pixels, Pixels]]) -> Batch:
    sources, targets = zip(*pairs, strict=True)
    return Batch(torch.from_numpy(np.stack(sources)), torch.from_numpy(np.stack(targets)))


def draw_sketches(
    paths: Iterable[Path],
    *,
    size: int,
    variants: int = 6,
    seed: int = 0,
    cache: Path,
    threads: int = 2,
    show: Show = show_nothing,
) -> Pixels:
    """Return `variants` drawings of each photo, [N, variants, size, size], kept in the file `cache`.

    The file is used again for the same photos, drawn in the same way; otherwise it is replaced.
    """
    paths = list(paths)
    files = [(path.name, path.stat().st_size) for path in paths]
    method = b"".join(Path(str(module.__file__)).read_bytes() for module in (sketch, pencil))
    settings = repr((files, size, variants, seed, inputs.DRAWING_SIZE, method))
    key = hashlib.sha256(settings.encode()).hexdigest()
    kept = _read_cache(cache, key)
    if kept is not None:
        return kept

    cv2.setNumThreads(1)  # the threads below are parallel already

    def draw_one(numbered: tuple[int, Path]) -> Pixels:
        number, path = numbered
        photo = read_photo(path, size=inputs.DRAWING_SIZE, smallest=1)
        if isinstance(photo, str):
            raise InputError(f"cannot draw {path}: {photo}")
        rngs = (np.random.default_rng([seed, number, variant]) for variant in range(variants))
        return np.stack([scale(sketch.draw_by_any_hand(photo, rng), size) for rng in rngs])

    drawings = np.empty((len(paths), variants, size, size), np.uint8)
    for number, found in enumerate(in_threads(draw_one, list(enumerate(paths)), threads)):
        show("drawing sketches", number, len(paths))
        drawings[number] = found
    unfinished = cache.with_suffix(f".{os.getpid()}.partial.npz")
    np.savez(unfinished, drawings=drawings, key=key)
    os.replace(unfinished, cache)
    return drawings


def _read_cache(cache: Path, key: str) -> Pixels | None:
    try:
        with np.load(cache) as kept:
            drawings: Pixels | None = kept["drawings"] if str(kept["key"]) == key else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # missing, cut off, or something else: drawn again
    return drawings


def _load_partners(recipe: Recipe, photos: Photos, images: Path, folder: Path) -> Pixels:
    """Read the inputs that are paired with photos by the file name without its ending, [N, h, w, C]."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; --pairs names the one that holds the inputs")
    files = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}
    wanted = [path.stem for path in photos.paths]
    known = {*wanted, *(Path(name).stem for name in photos.skipped)}
    _refuse_unmatched([stem for stem in wanted if stem not in files], images, folder)
    _refuse_unmatched([stem for stem in files if stem not in known], folder, images)
    channels = 3 if recipe.kind == "rgb" else 1
    partners = np.empty((len(wanted), recipe.input_size, recipe.input_size, channels), np.uint8)
    for index, partner in enumerate(in_threads(lambda stem: read_partner(files[stem], recipe), wanted, 2)):
        partners[index] = partner
    return partners


def read_partner(path: Path, recipe: Recipe) -> Pixels:
    """Return one input [h, w, C]: its middle square, in the encoder's size."""
    try:
        pixels = pixels_of(load(path), recipe.kind)  # as the runtime reads its inputs
    except InputError as error:
        reason = str(error).removeprefix(f"{path} ")
        raise InputError(f"{path} cannot be used ({reason}); fix it, or remove the pair") from error
    labels = recipe.labels or 0
    if recipe.kind == "labels" and pixels.max() >= labels:
        raise InputError(
            f"{path} holds the label {pixels.max()}, but the recipe has {labels} (0 to {labels - 1}); "
            f"fix the map, or use --set labels={int(pixels.max()) + 1}"
        )
    side = min(pixels.shape[:2])
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    square = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    method = "nearest" if recipe.kind == "labels" else "bilinear"
    scaled = resize(square, recipe.input_size, recipe.input_size, method=method)
    return scaled.reshape(recipe.input_size, recipe.input_size, -1)


def _refuse_unmatched(stems: list[str], folder: Path, other: Path) -> None:
    if stems:
        raise InputError(
            f"{len(stems)} pictures in {folder} have no partner in {other} "
            f"({', '.join(stems[:SHOWN_FILES])}{', ...' if len(stems) > SHOWN_FILES else ''}); "
            "the two files of a pair have the same name apart from its ending"
        )


def ahead(make: Callable[[T], R], items: Iterable[T], *, threads: int = 2, in_flight: int = 4) -> Iterator[R]:
    """Make results in the background and yield them in the items' order.

    Args:
        make: Called in several threads.
        items: May be endless.
        threads: How many.
        in_flight: Results that are being made or wait to be taken.
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
