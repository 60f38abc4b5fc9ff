"""The real pictures: all in memory as uint8, on the device where they fit."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainer.data import photos as data

DEVICE_SHARE = 0.25  # of a GPU's free memory may go to pictures


@dataclass(frozen=True, kw_only=True)
class RealPhotos:
    """Photos as training batches; which come at which place of a run follows from the seed."""

    pixels: Tensor  # [N, 3, S, S] uint8
    device: torch.device
    seed: int = 0
    fingerprint: str = ""  # another set of photos makes another run
    skipped: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, *, size: int, device: torch.device, seed: int = 0) -> "RealPhotos":
        """Read a folder; photos of less than half the size are left out and listed."""
        photos = data.load_photos(folder, size=size, smallest=size // 2)
        pixels = torch.from_numpy(photos.pixels).permute(0, 3, 1, 2)  # a view: sets may fill half the memory
        fingerprint = data.fingerprint([path.name for path in photos.paths], photos.pixels)
        pixels = _placed(pixels, device)
        return cls(pixels=pixels, device=device, seed=seed, fingerprint=fingerprint, skipped=photos.skipped)

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, place: int, length: int, *, mirror: bool) -> Tensor:
        """Return the photos at the places of a run from `place` on, [length, 3, S, S] in [-1, 1]."""
        indices = data.positions_to_images(len(self), seed=self.seed, start=place, length=length)
        photos = self.plain(torch.from_numpy(indices))
        if not mirror:
            return photos
        places = range(place, place + length)
        sides = [np.random.default_rng([self.seed, where]).random() < 0.5 for where in places]
        return torch.where(self._moved(torch.tensor(sides))[:, None, None, None], photos.flip(3), photos)

    def plain(self, indices: Tensor) -> Tensor:
        """Return the photos of the given numbers, [n, 3, S, S] in [-1, 1]."""
        chosen = self.pixels[indices if self.pixels.device.type == "cpu" else self._moved(indices)]
        return self._moved(chosen).float() / 127.5 - 1

    def _moved(self, values: Tensor) -> Tensor:
        if self.device.type == "cuda" and not values.is_cuda:
            values = values.pin_memory()  # a copy from other memory would wait for the GPU
        return values.to(self.device, non_blocking=True)


def _placed(pixels: Tensor, device: torch.device) -> Tensor:
    """Move pixels to a GPU if it has the room; batches are sent there one by one if not."""
    if device.type != "cuda":
        return pixels
    free, _ = torch.cuda.mem_get_info(device)
    return pixels.to(device) if pixels.numel() < DEVICE_SHARE * free else pixels
