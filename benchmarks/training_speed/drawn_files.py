"""Synthetic files for a training run: photos, a generator, the networks of losses.

With them a benchmark runs anywhere, without a pretrained file. Quality figures measured with them mean
nothing; speed does not depend on the values.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from psp_rt.images import resize
from trainer.losses.identity import MobileFaceNet
from trainer.losses.lpips import LpipsAlex
from trainer.networks import Generator, GeneratorConfig


def photos(folder: Path, *, count: int, size: int, seed: int = 0) -> Path:
    """Write pictures with smooth colors and some grain, as JPEG."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        colors = resize(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), size, size)
        grain = rng.integers(-12, 13, (size, size, 3))
        Image.fromarray(np.clip(colors + grain, 0, 255).astype(np.uint8)).save(folder / f"{number:04}.jpg")
    return folder


def label_maps(folder: Path, names: Iterable[str], *, size: int, labels: int) -> Path:
    """Write a label map for each photo's name."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    for name in names:
        ids = rng.integers(0, labels, (8, 8), dtype=np.uint8)
        Image.fromarray(resize(ids, size, size, method="nearest")).save(folder / f"{Path(name).stem}.png")
    return folder


def generator(path: Path, config: GeneratorConfig) -> Path:
    """Write a StyleGAN2."""
    torch.manual_seed(0)
    drawn = Generator(config)
    torch.save({"g_ema": drawn.state_dict(), "latent_avg": drawn.mean_style()}, path)
    return path


def identity(path: Path) -> Path:
    """Write a MobileFaceNet."""
    torch.manual_seed(1)
    torch.save({"net_state_dict": MobileFaceNet().state_dict()}, path)
    return path


def lpips(folder: Path) -> tuple[Path, Path]:
    """Write AlexNet's features and the heads of LPIPS."""
    torch.manual_seed(2)
    drawn = LpipsAlex()
    features, heads = folder / "features.pt", folder / "heads.pth"
    torch.save(
        {
            f"features.{index}.{name}": value
            for index, conv in drawn.convs.items()
            for name, value in conv.state_dict().items()
        },
        features,
    )
    values = [nn.init.constant_(torch.empty_like(head), 0.1) for head in drawn.heads]
    torch.save(
        {f"lin{number}.model.1.weight": value.view(1, -1, 1, 1) for number, value in enumerate(values)}, heads
    )
    return features, heads
