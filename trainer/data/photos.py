"""Folders of photos in memory as uint8, so that training waits for no disk and no decoder.

Which photo comes at which place of a run follows from the seed and that place alone: a resumed run sees
what the uninterrupted one would have seen, at any batch size and number of processes.
"""

import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from psp_rt.errors import InputError
from psp_rt.images import load, pixels_of
from trainer.loop.report import Show

Pixels = NDArray[np.uint8]
T = TypeVar("T")
R = TypeVar("R")

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
GPU_SHARE = 0.25  # of a GPU's free memory may be used for photos


def show_nothing(what: str, done: int, total: int) -> None:
    """Ignore progress."""


@dataclass(frozen=True, kw_only=True)
class Photos:
    """The photos of a folder, and what was left out."""

    paths: tuple[Path, ...]
    pixels: Pixels  # [N, size, size, 3] RGB
    skipped: dict[str, str]  # file name -> reason

    def fingerprint(self, *others: Pixels) -> str:
        """Return what distinguishes these photos, and other pictures with them, from any others."""
        total = zlib.crc32("\n".join(path.name for path in self.paths).encode())
        for pixels in (self.pixels, *others):
            total = zlib.crc32(pixels.reshape(-1).view(np.uint8).data, total)
        return f"{len(self.paths)} images, {total:08x}"


def load_photos(
    folder: str | Path, *, size: int, smallest: int = 64, threads: int = 2, show: Show = show_nothing
) -> Photos:
    """Read every photo of a folder into memory: its middle square, scaled to size x size.

    Files that are not images, or have a side below `smallest` pixels, are left out and listed.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder} is not a folder; name the one that holds the training photos")
    paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in SUFFIXES)

    def read(path: Path) -> Pixels | str:
        return read_photo(path, size=size, smallest=smallest)

    pixels = np.empty((len(paths), size, size, 3), np.uint8)  # filled in place: sets may fill half the memory
    kept, skipped = list[Path](), dict[str, str]()
    for number, (path, result) in enumerate(zip(paths, in_threads(read, paths, threads), strict=True)):
        show(f"reading photos from {folder}", number, len(paths))
        if isinstance(result, str):
            skipped[path.name] = result
        else:
            pixels[len(kept)] = result
            kept.append(path)
    if not kept:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
        raise InputError(
            f"{folder} holds no usable photo ({reasons or 'no image file'}); "
            f"expected {', '.join(sorted(SUFFIXES))} of at least {smallest} pixels a side"
        )
    return Photos(paths=tuple(kept), pixels=pixels[: len(kept)], skipped=skipped)


def read_photo(path: Path, *, size: int, smallest: int) -> Pixels | str:
    """Return the middle square of a photo [size, size, 3], or why it cannot be used."""
    try:
        photo = pixels_of(load(path), "rgb")  # as the runtime reads its inputs
    except InputError as error:
        return str(error).removeprefix(f"{path} ").partition(";")[0]
    height, width, _ = photo.shape
    side = min(height, width)
    if side < smallest:
        return f"only {width}x{height} pixels"
    left, top = (width - side) // 2, (height - side) // 2
    return scale(np.ascontiguousarray(photo[top : top + side, left : left + side]), size)


def scale(image: Pixels, size: int) -> Pixels:
    """Return a square image in another size."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def in_threads(work: Callable[[T], R], items: Sequence[T], threads: int) -> Iterable[R]:
    """Yield the results of some work in order, done in several threads."""
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(work, items)


def positions_to_images(count: int, *, seed: int, start: int, length: int) -> NDArray[np.int64]:
    """Return which of `count` images come at the places start, start + 1, ... of a run, [length].

    Each epoch is a permutation, and batches run over its end, so no image is ever dropped.

    >>> positions_to_images(3, seed=0, start=0, length=6)
    array([2, 0, 1, 2, 0, 1])
    """
    places = np.arange(start, start + length)
    return np.array([_epoch_order(count, seed, place // count)[place % count] for place in places.tolist()])


@lru_cache(maxsize=2)
def _epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)


@dataclass(frozen=True, kw_only=True)
class PhotoSet:
    """Photos for a generator, on the device if they fit."""

    pixels: Tensor  # uint8 [N, 3, S, S]
    device: torch.device
    seed: int = 0
    fingerprint: str = ""  # other photos make another run
    skipped: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(
        cls, folder: Path, *, size: int, device: torch.device, seed: int = 0, show: Show = show_nothing
    ) -> "PhotoSet":
        """Read a folder; photos of less than half the size are left out and listed."""
        photos = load_photos(folder, size=size, smallest=size // 2, show=show)
        pixels = torch.from_numpy(photos.pixels).permute(0, 3, 1, 2)  # a view: sets may fill half the memory
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            pixels = pixels.to(device) if pixels.numel() < GPU_SHARE * free else pixels
        return cls(
            pixels=pixels,
            device=device,
            seed=seed,
            fingerprint=photos.fingerprint(),
            skipped=photos.skipped,
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, place: int, length: int, *, mirror: bool) -> Tensor:
        """Return the photos at the places of a run from `place` on, [length, 3, S, S] in [-1, 1]."""
        indices = positions_to_images(len(self), seed=self.seed, start=place, length=length)
        photos = self.plain(torch.from_numpy(indices))
        if not mirror:
            return photos
        places = range(place, place + length)
        mirrored = [np.random.default_rng([self.seed, each]).random() < 0.5 for each in places]
        return torch.where(self._move(torch.tensor(mirrored))[:, None, None, None], photos.flip(3), photos)

    def plain(self, indices: Tensor) -> Tensor:
        """Return the photos of the given numbers, [n, 3, S, S] in [-1, 1]."""
        chosen = self.pixels[indices if self.pixels.device.type == "cpu" else self._move(indices)]
        return self._move(chosen).float() / 127.5 - 1

    def _move(self, values: Tensor) -> Tensor:
        if self.device.type == "cuda" and not values.is_cuda:
            values = values.pin_memory()  # a copy from pageable memory would wait for the GPU
        return values.to(self.device, non_blocking=True)
