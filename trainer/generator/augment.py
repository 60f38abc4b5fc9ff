"""Adaptive discriminator augmentation (arXiv:2006.06676): small data sets without overfitting.

Real and generated pictures pass through the same kinds of random transforms before the
discriminator sees them. Each happens with probability p only; below about 0.8 the generator still
learns what pictures look like without them (section 2.2 there).

A geometric transform is a matrix [N, 3, 3] that takes a point of the result to the point of the
picture it shows, on axes (x, y) from -1 to 1, y downwards; a color transform is a matrix
[N, 4, 4] on (red, green, blue, 1). All of one family are multiplied into one matrix, so a picture is
sampled once, however many transforms it gets. The matrices are made on the CPU: there are about a
hundred operations on nine numbers, and a GPU would need longer to launch them than to train a layer.

Unlike in the paper, the picture is sampled bilinearly at its own size, without wavelet filters at
double size.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Numbers]


def augment(pictures: Tensor, *, probability: float, rng: np.random.Generator) -> Tensor:
    """Return pictures [N, 3, S, S], each randomly transformed; gradients flow through."""
    if probability == 0:
        return pictures
    count, size = len(pictures), pictures.shape[-1]
    # The picture turns once before and once after the stretch, with probability p in all.
    one_turn = partial(draw_all, [turn], rng, count, probability=1 - (1 - probability) ** 0.5)
    some = partial(draw_all, rng=rng, count=count, probability=probability)
    geometry = some([flip, quarter_turn, partial(whole_shift, size=size), zoom])
    geometry = geometry @ one_turn() @ some([stretch]) @ one_turn() @ some([shift])
    return recolor(resample(pictures, geometry), some(COLORS))


def draw_all(draws: Sequence[Draw], rng: np.random.Generator, count: int, *, probability: float) -> Numbers:
    """Return the product of matrices, each drawn, or the identity if it does not happen."""
    product = None
    for draw in draws:
        matrix = draw(rng, count)
        matrix[rng.random(count) >= probability] = np.eye(matrix.shape[-1])
        product = matrix if product is None else product @ matrix
    assert product is not None
    return product


def resample(pictures: Tensor, matrices: Numbers) -> Tensor:
    """Move the points of pictures [N, C, S, S]; what lies outside is mirrored at the edge."""
    with torch.autocast(pictures.device.type, enabled=False):
        grid = F.affine_grid(_like(pictures, matrices[:, :2]), list(pictures.shape), align_corners=False)
        return F.grid_sample(
            pictures.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False
        )


def recolor(pictures: Tensor, matrices: Numbers) -> Tensor:
    """Change the colors of pictures [N, 3, S, S]."""
    matrix = _like(pictures, matrices)
    with torch.autocast(pictures.device.type, enabled=False):
        mixed = matrix[:, :3, :3] @ pictures.float().flatten(2) + matrix[:, :3, 3:]
    return mixed.reshape(pictures.shape)


def scaled(x: Numbers, y: Numbers) -> Numbers:
    """Stretch by x and y [N], negative for a mirror image."""
    return _matrix([[1 / x, 0, 0], [0, 1 / y, 0], [0, 0, 1]], len(x))


def turned(radians: Numbers) -> Numbers:
    """Turn to the left by an angle [N]."""
    c, s = np.cos(radians), np.sin(radians)
    return _matrix([[c, -s, 0], [s, c, 0], [0, 0, 1]], len(radians))


def shifted(x: Numbers, y: Numbers) -> Numbers:
    """Shift to the right by x and down by y [N], in sides of the picture."""
    return _matrix([[1, 0, -2 * x], [0, 1, -2 * y], [0, 0, 1]], len(x))


def brightened(by: Numbers) -> Numbers:
    """Add to all colors [N]."""
    return _matrix([[1, 0, 0, by], [0, 1, 0, by], [0, 0, 1, by], [0, 0, 0, 1]], len(by))


def contrasted(factor: Numbers) -> Numbers:
    """Multiply all colors by a factor [N]; 0 is the middle gray."""
    return _matrix([[factor, 0, 0, 0], [0, factor, 0, 0], [0, 0, factor, 0], [0, 0, 0, 1]], len(factor))


def lightened(factor: Numbers) -> Numbers:
    """Multiply the lightness by a factor [N], -1 to exchange light and dark; hues stay."""
    return np.eye(4) + GRAY * (factor - 1)[:, None, None]


def saturated(factor: Numbers) -> Numbers:
    """Multiply the distance from gray by a factor [N]; the lightness stays."""
    return np.eye(4) + (np.diag([1.0, 1, 1, 0]) - GRAY) * (factor - 1)[:, None, None]


def hue_turned(radians: Numbers) -> Numbers:
    """Turn the hue by an angle [N]; a third of a turn takes red to green."""
    c, s = np.cos(radians), np.sin(radians) / 3**0.5
    third = (1 - c) / 3  # Rodrigues' formula for the axis (1, 1, 1) / sqrt(3)
    rows: list[list[Numbers | float]] = [
        [c + third, third - s, third + s, 0],
        [third + s, c + third, third - s, 0],
        [third - s, third + s, c + third, 0],
        [0, 0, 0, 1],
    ]
    return _matrix(rows, len(radians))


def flip(rng: np.random.Generator, count: int) -> Numbers:
    """Mirror every second picture."""
    return scaled(rng.choice([-1.0, 1.0], count), np.ones(count))


def quarter_turn(rng: np.random.Generator, count: int) -> Numbers:
    """Turn by 0, 90, 180 or 270 degrees."""
    return turned(rng.choice([0, 0.5, 1, 1.5], count) * math.pi).round()


def whole_shift(rng: np.random.Generator, count: int, *, size: int) -> Numbers:
    """Shift by whole pixels, up to an eighth of the side."""
    return shifted(*(rng.uniform(-0.125, 0.125, (2, count)) * size).round() / size)


def zoom(rng: np.random.Generator, count: int) -> Numbers:
    """Scale by 2 ** N(0, 0.2)."""
    factor = 2 ** rng.normal(0, 0.2, count)
    return scaled(factor, factor)


def turn(rng: np.random.Generator, count: int) -> Numbers:
    """Turn by any angle."""
    return turned(rng.uniform(-math.pi, math.pi, count))


def stretch(rng: np.random.Generator, count: int) -> Numbers:
    """Scale x by 2 ** N(0, 0.2) and y by its inverse."""
    factor = 2 ** rng.normal(0, 0.2, count)
    return scaled(factor, 1 / factor)


def shift(rng: np.random.Generator, count: int) -> Numbers:
    """Shift by N(0, 0.125) of the side."""
    return shifted(*rng.normal(0, 0.125, (2, count)))


def brightness(rng: np.random.Generator, count: int) -> Numbers:
    """Add N(0, 0.2)."""
    return brightened(rng.normal(0, 0.2, count))


def contrast(rng: np.random.Generator, count: int) -> Numbers:
    """Multiply by 2 ** N(0, 0.5)."""
    return contrasted(2 ** rng.normal(0, 0.5, count))


def luma_flip(rng: np.random.Generator, count: int) -> Numbers:
    """Exchange light and dark in every second picture."""
    return lightened(rng.choice([-1.0, 1.0], count))


def hue(rng: np.random.Generator, count: int) -> Numbers:
    """Turn the hue by any angle."""
    return hue_turned(rng.uniform(-math.pi, math.pi, count))


def saturation(rng: np.random.Generator, count: int) -> Numbers:
    """Multiply the distance from gray by 2 ** N(0, 1)."""
    return saturated(2 ** rng.normal(0, 1, count))


# A product of matrices acts from its right end: brightness comes first, as in the paper.
COLORS: Sequence[Draw] = (saturation, hue, luma_flip, contrast, brightness)
GRAY = np.pad(np.full((3, 3), 1 / 3), (0, 1))  # the projection onto the gray axis, [4, 4]


def adjusted(
    probability: float, realness: float, *, images: int, target: float = 0.6, images_to_full: int = 500_000
) -> float:
    """Return the next probability: up if the discriminator knows the real pictures too well.

    Args:
        probability: The current one.
        realness: Mean sign of the scores of real pictures since the last adjustment; it nears 1
            when the discriminator has memorized them (r_t of section 3 of the paper).
        images: How many pictures were shown since the last adjustment.
        target: The desired realness.
        images_to_full: How many pictures it takes from 0 to 1.
    """
    step = float(np.sign(realness - target)) * images / images_to_full
    return min(max(probability + step, 0.0), 1.0)


def _like(pictures: Tensor, matrices: Numbers) -> Tensor:
    matrix = torch.from_numpy(matrices.astype(np.float32))
    if pictures.is_cuda:
        matrix = matrix.pin_memory()  # a copy from pageable memory would wait for the GPU
    return matrix.to(pictures.device, non_blocking=True)


def _matrix(rows: list[list[Numbers | float]], count: int) -> Numbers:
    """Return matrices [N, n, n] of numbers and of one value for each picture [N]."""
    result = np.empty((count, len(rows), len(rows)))
    for row, cells in enumerate(rows):
        for column, cell in enumerate(cells):
            result[:, row, column] = cell
    return result
