"""What each process of a test with two processes runs; a separate module, to import little."""

import os
from pathlib import Path

import torch

from trainer.data.photos import PhotoSet
from trainer.generator import training as loop
from trainer.generator.config import GanConfig
from trainer.loop import distributed as team


def twenty_photos() -> PhotoSet:
    """Return pictures that all differ."""
    pixels = torch.arange(20 * 3 * 256).reshape(20, 3, 16, 16).to(torch.uint8)
    return PhotoSet(pixels=pixels, device=torch.device("cpu"))


def train(rank: int, port: int, settings: GanConfig, output: Path) -> None:
    """Train as `torchrun` would have it."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)}
    torch.set_num_threads(1)
    with team.joined("cpu") as member:
        list(loop.train(settings, twenty_photos(), team=member, output=output))
