"""Tiny encoder trainings: photos, a generator of 32 pixels and recipes that fit it."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from trainer import recipe as tasks
from trainer.encoder.run import Run
from trainer.networks import Generator, GeneratorConfig
from trainer.recipe import Recipe

# Widths are multiples of 8: with fewer channels, the backward pass of channels-last convolutions corrupts
# memory on processors that only have AVX2 (torch 2.13, oneDNN).
CONFIG = GeneratorConfig(channels=(8, 8, 8, 8), style_dim=12, mapping_layers=2)  # 32 pixels, 8 styles
CHANGES = (
    "input_size=32",
    "widths=[8, 8, 8, 8]",
    "depths=[1, 1, 1, 1]",
    "head_width=8",
    "losses.lpips=0",
    "losses.identity=0",
    "losses.w_norm=0.005",
    "learning_rate=1e-3",
    "batch=4",
    "images=24",
    "report_images=12",
)


def write_faces(folder: Path, count: int = 6) -> Path:
    """Write small pictures of different colors."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        photo = np.full((70, 70, 3), rng.integers(50, 200, 3), np.uint8)
        photo[40:50, 20:50] = 20 * number
        Image.fromarray(photo).save(folder / f"{number}.png")
    return folder


def draw_generator() -> Generator:
    """Return a generator with drawn weights, whose noise is visible."""
    torch.manual_seed(1)
    drawn = Generator(CONFIG)
    for name, value in drawn.named_parameters():
        if name.endswith("noise.weight"):
            value.data.fill_(0.1)
    return drawn.eval().requires_grad_(False)


def recipe_of(task: str = "inversion", *changes: str) -> Recipe:
    """Return the recipe of a task in tiny sizes."""
    return tasks.with_sizes(tasks.default(task, (*CHANGES, *changes)), CONFIG)


def start(recipe: Recipe, generator: Generator) -> Run:
    """Return a new run on the CPU."""
    return Run.start(recipe, generator, generator.mean_style(), device=torch.device("cpu"))
