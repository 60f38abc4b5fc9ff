"""Training pairs from a folder of photos: a sketch in, the photo out.

Everything lives in memory as uint8, so that training waits for no disk and no decoder. Sketches
are drawn once, several for each photo, and kept beside the run; each time one is used it is moved,
paled and rubbed out a little differently.

Which image comes at which place, and every variation of it, follows from the seed and that place
alone: a resumed run sees what the uninterrupted one would have seen, at any batch size.
"""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from psp_rt.errors import InputError
from psp_rt.images import load, pixels_of
from trainer.data import sketch

Pixels = NDArray[np.uint8]
T = TypeVar("T")
R = TypeVar("R")

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
DRAWING_SIZE = 160  # pixels: lines keep their form when scaled down to 64, at 3 ms a drawing


@dataclass(frozen=True, kw_only=True)
class Photos:
    """The photos of a folder, and what was left out."""

    paths: tuple[Path, ...]
    pixels: Pixels  # [N, size, size, 3] RGB
    skipped: dict[str, str]  # file name -> reason


class Batch(NamedTuple):
    """Pairs to train on."""

    sources: Tensor  # [N, 1, h, w] in [0, 1], 1 is paper
    targets: Tensor  # [N, 3, H, W] in [-1, 1]

    def to(self, device: torch.device) -> "Batch":
        """Return the pairs on a device."""
        return Batch(sources=self.sources.to(device), targets=self.targets.to(device))


def load_photos(folder: str | Path, *, size: int, smallest: int = 64, threads: int = 2) -> Photos:
    """Read every photo of a folder into memory, scaled to size x size.

    Files that are no image, or have a side below `smallest` pixels, are left out and listed.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder} is not a folder; name the one that holds the training photos")
    paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in SUFFIXES)

    def read(path: Path) -> Pixels | str:
        return _read(path, size=size, smallest=smallest)

    pixels = np.empty((len(paths), size, size, 3), np.uint8)  # filled in place: sets may fill half the memory
    read_well, skipped = list[Path](), dict[str, str]()
    for path, result in zip(paths, _in_threads(read, paths, threads), strict=True):
        if isinstance(result, str):
            skipped[path.name] = result
        else:
            pixels[len(read_well)] = result
            read_well.append(path)
    if not read_well:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
        raise InputError(
            f"{folder} holds no usable photo ({reasons or 'no image file'}); "
            f"expected {', '.join(sorted(SUFFIXES))} of at least {smallest} pixels a side"
        )
    return Photos(paths=tuple(read_well), pixels=pixels[: len(read_well)], skipped=skipped)


def fingerprint(names: Sequence[str], *pictures: Pixels) -> str:
    """Return what tells one set of pictures from another: their number, and a sum of names and pixels."""
    total = zlib.crc32("\n".join(names).encode())
    for pixels in pictures:
        total = zlib.crc32(pixels.reshape(-1).view(np.uint8).data, total)
    return f"{len(names)} images, {total:08x}"


def draw_sketches(
    paths: Iterable[Path], *, size: int, variants: int = 6, seed: int = 0, cache: Path, threads: int = 2
) -> Pixels:
    """Return `variants` drawings of each photo, [N, variants, size, size], kept in the file `cache`.

    The file is used again only for the same photos, drawn the same way; else it is replaced.
    """
    paths = list(paths)
    key = _fingerprint(paths, size, variants, seed)
    kept = _read_cache(cache, key)
    if kept is not None:
        return kept

    cv2.setNumThreads(1)  # the threads below are parallel already

    def draw_one(numbered: tuple[int, Path]) -> Pixels:
        number, path = numbered
        photo = _read(path, size=DRAWING_SIZE, smallest=1)
        if isinstance(photo, str):
            raise InputError(f"cannot draw {path}: {photo}")
        generators = (np.random.default_rng([seed, number, variant]) for variant in range(variants))
        return np.stack([_resize(sketch.draw(photo, rng), size) for rng in generators])

    drawings = np.stack(list(_in_threads(draw_one, list(enumerate(paths)), threads)))
    unfinished = cache.with_suffix(f".{os.getpid()}.partial.npz")
    np.savez(unfinished, drawings=drawings, key=key)
    os.replace(unfinished, cache)
    return drawings


def positions_to_images(count: int, *, seed: int, start: int, length: int) -> NDArray[np.int64]:
    """Return which of `count` images come at the places start, start + 1, ... of a run [length].

    Each epoch is a permutation, and batches run on over its end, so no image is ever dropped.

    >>> positions_to_images(3, seed=0, start=0, length=6)
    array([2, 0, 1, 2, 0, 1])
    """
    places = np.arange(start, start + length)
    return np.array([_epoch_order(count, seed, place // count)[place % count] for place in places.tolist()])


@dataclass(frozen=True, kw_only=True)
class SketchPairs:
    """Photos and their sketches as training batches."""

    photos: Pixels  # [N, H, W, 3]
    sketches: Pixels  # [N, variants, h, w]
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.photos) != len(self.sketches):
            raise InputError(f"{len(self.photos)} photos have {len(self.sketches)} sets of sketches")

    def __len__(self) -> int:
        return len(self.photos)

    def batch(self, images_seen: int, batch_size: int) -> Batch:
        """Return the pairs that follow after `images_seen`; half of them are mirrored."""
        indices = positions_to_images(len(self), seed=self.seed, start=images_seen, length=batch_size)
        sources, targets = [], []
        for place, index in enumerate(indices.tolist(), start=images_seen):
            rng = np.random.default_rng([self.seed, place])
            source = self.sketches[index, rng.integers(self.sketches.shape[1])]
            target = self.photos[index]
            if rng.random() < 0.5:
                source, target = source[:, ::-1], target[:, ::-1]
            sources.append(vary(source, rng))
            targets.append(target)
        return _as_batch(np.stack(sources), np.stack(targets))

    def plain(self, indices: NDArray[np.int64]) -> Batch:
        """Return the first sketch of the given images, unvaried: for looking and for measuring."""
        return _as_batch(self.sketches[indices, 0], self.photos[indices])


def vary(drawing: Pixels, rng: np.random.Generator) -> Pixels:
    """Move, pale and partly rub out a drawing [h, w]: no two people hand in the same scan."""
    height, width = drawing.shape
    middle = (width / 2, height / 2)
    turn = np.asarray(cv2.getRotationMatrix2D(middle, rng.normal(0, 1.5), 1 + rng.normal(0, 0.015)), float)
    turn[:, 2] += rng.normal(0, 0.01 * width, 2)
    moved = cv2.warpAffine(np.ascontiguousarray(drawing), turn, (width, height), borderValue=255)
    paled = 255 - (255 - moved.astype(np.float32)) * rng.uniform(0.6, 1.2)
    if rng.random() < 0.15:
        tall, wide = rng.integers(height // 16, height // 4), rng.integers(width // 16, width // 4)
        top, left = rng.integers(height - tall), rng.integers(width - wide)
        paled[top : top + tall, left : left + wide] = 255
    varied: Pixels = np.clip(paled, 0, 255).astype(np.uint8)
    return varied


def _as_batch(sources: Pixels, targets: Pixels) -> Batch:
    return Batch(
        sources=torch.from_numpy(sources[:, None]).float() / 255,
        targets=torch.from_numpy(targets).permute(0, 3, 1, 2).float() / 127.5 - 1,
    )


@lru_cache(maxsize=2)
def _epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)


def _read(path: Path, *, size: int, smallest: int) -> Pixels | str:
    """Return the middle square of a photo [size, size, 3], or why it cannot be used."""
    try:
        photo = pixels_of(load(path), "rgb")  # as the runtime reads what it translates
    except InputError as error:
        return str(error).removeprefix(f"{path} ").partition(";")[0]
    height, width, _ = photo.shape
    side = min(height, width)
    if side < smallest:
        return f"only {width}x{height} pixels"
    left, top = (width - side) // 2, (height - side) // 2
    return _resize(np.ascontiguousarray(photo[top : top + side, left : left + side]), size)


def _resize(image: Pixels, size: int) -> Pixels:
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def _in_threads(work: Callable[[T], R], items: list[T], threads: int) -> Iterable[R]:
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(work, items)


def _fingerprint(paths: list[Path], size: int, variants: int, seed: int) -> str:
    files = [(path.name, path.stat().st_size) for path in paths]
    method = Path(sketch.__file__).read_bytes()
    return hashlib.sha256(repr((files, size, variants, seed, DRAWING_SIZE, method)).encode()).hexdigest()


def _read_cache(cache: Path, key: str) -> Pixels | None:
    try:
        with np.load(cache) as kept:
            drawings: Pixels | None = kept["drawings"] if str(kept["key"]) == key else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # absent, cut off, or something else: drawn anew
    return drawings
