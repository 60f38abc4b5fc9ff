"""What an encoder reads, made from the photo during training: sketch, low resolution, mask."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from psp_rt.images import resize
from trainer.data import sketch
from trainer.recipe import Recipe

Pixels = NDArray[np.uint8]

GRAY = 128  # fills the missing part of a masked photo
DRAWING_SIZE = 160  # pixels: lines keep their shape when scaled down to 64, at 3 ms a drawing


def photo_size(recipe: Recipe) -> int:
    """Return the side in pixels at which photos are kept: enough for the input and the target."""
    drawing = max(2 * recipe.input_size, DRAWING_SIZE) if recipe.source == "sketch" else 0
    return max(recipe.input_size, recipe.loss_size, drawing)


def make(photo: Pixels, recipe: Recipe, rng: np.random.Generator, *, vary: bool = True) -> Pixels:
    """Make the input [h, w, C] from a photo [S, S, 3]; not for paired data.

    Args:
        photo: RGB.
        recipe: Selects the kind of input.
        rng: Draws the pencil, the factor and so on.
        vary: Also move sketches and erase parts of them, as for training.
    """
    size = recipe.input_size
    if recipe.source == "sketch":
        drawing = resize(sketch.draw_by_any_hand(photo, rng), size, size)
        return (sketch.vary(drawing, rng) if vary else drawing)[:, :, None]
    photo = resize(photo, size, size)
    if recipe.source == "low-resolution":
        return lower_resolution(photo, int(rng.choice(recipe.factors)))
    if recipe.source == "masked":
        return np.where(triangle(size)[:, :, None], np.uint8(GRAY), photo)
    return photo


def lower_resolution(photo: Pixels, factor: int) -> Pixels:
    """Make a photo `factor` times smaller (bicubic, antialiased), then as large as before (bilinear)."""
    if factor == 1:
        return photo
    height, width = photo.shape[:2]
    smaller = (max(width // factor, 1), max(height // factor, 1))
    small = Image.fromarray(photo).resize(smaller, Image.Resampling.BICUBIC)
    return resize(np.asarray(small), height, width)


def triangle(size: int) -> NDArray[np.bool_]:
    """Return where a photo is missing: a triangle on the lower edge with its tip in the middle.

    The paper only says "a simple, symmetric triangular mask"; we take a quarter of the photo, which
    hides mouth and chin of an aligned face.

    >>> triangle(4).astype(int)
    array([[0, 0, 0, 0],
           [0, 0, 0, 0],
           [0, 1, 1, 0],
           [1, 1, 1, 1]])
    """
    y, x = np.mgrid[:size, :size] + 0.5 - size / 2  # from the middle
    missing: NDArray[np.bool_] = np.abs(x) <= y
    return missing


def to_network(pixels: Tensor, recipe: Recipe) -> Tensor:
    """Turn inputs uint8 [N, h, w, C] into what the encoder reads, float32 [N, channels, h, w]."""
    if recipe.kind == "labels":
        one_hot = F.one_hot(pixels[..., 0].long(), recipe.labels or 0)  # [N, h, w, labels]
        return one_hot.permute(0, 3, 1, 2).float()
    x = pixels.permute(0, 3, 1, 2).float()
    return x / 255 if recipe.kind == "gray" else x / 127.5 - 1


def to_target(pixels: Tensor) -> Tensor:
    """Turn photos uint8 [N, S, S, 3] into [N, 3, S, S] in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_picture(pixels: Tensor, recipe: Recipe) -> Tensor:
    """Turn inputs uint8 [N, h, w, C] into pictures [N, 3, h, w] in [-1, 1] for a sheet."""
    if recipe.kind == "labels":
        pixels = _palette(recipe.labels or 0)[pixels[..., 0].long().cpu()]
    return to_target(pixels.expand(-1, -1, -1, 3))


def _palette(labels: int) -> Tensor:
    """Return a color for each label, [labels, 3]; 0, the background, is black."""
    hues = np.arange(labels) * 180 // max(labels, 1)
    hsv = np.stack([hues, np.full(labels, 200), np.where(hues > 0, 230, 0)], axis=-1).astype(np.uint8)
    return torch.from_numpy(cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0])
