"""Sketches drawn from photographs: the inputs that our sketch models are trained on, and ``--from-photo``.

A pencil filter (the color dodge of the photo with its blurred inverse, as in the pSp paper's
appendix) finds where the photo is darker than its surroundings. What a person would leave out
is then dropped: skin and hair texture, short specks, the background. The result is black lines on
white paper, [H, W] uint8. No two drawings of one photo are alike: the pencil, the number of lines,
the wobble of the hand and its pressure are random.

Photos are expected aligned as in FFHQ (face in the middle); others only lose some emphasis.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import PspError

Gray = NDArray[np.uint8]  # [H, W]
Field = NDArray[np.float32]  # [H, W]

UNIT_SIZE = 128  # lengths below are in pixels of a photo of this size


@dataclass(frozen=True, kw_only=True)
class Pencil:
    """How one drawing is made. Lengths are in pixels at 128x128."""

    detail: float = 0.6  # blur of the photo: larger draws fewer, bolder lines
    reach: float = 2.4  # blur of the surroundings, in units of `detail`
    ink: float = 0.13  # share of the paper that may be line before specks are dropped
    sureness: float = 1.6  # somewhere, a line must be this many times as strong as the weakest one kept
    shortest: float = 0.06  # lines shorter than this share of the width are specks
    width: float = 0.5  # blur of the finished lines
    thinness: float = 0.5  # 0.3 draws fat lines, 0.65 hairlines
    darkness: float = 0.95
    wobble: float = 0.0  # how far lines stray
    unevenness: float = 0.0  # how much the pressure varies along the lines

    @classmethod
    def random(cls, rng: np.random.Generator) -> Pencil:
        """Return a pencil such as a random person would use."""
        return cls(
            detail=rng.uniform(0.5, 0.85),
            reach=rng.uniform(1.8, 2.6),
            ink=rng.uniform(0.10, 0.16),
            sureness=rng.uniform(1.4, 1.8),
            shortest=rng.uniform(0.04, 0.09),
            width=rng.uniform(0.35, 0.65),
            thinness=rng.uniform(0.32, 0.62),
            darkness=1 - 0.5 * rng.beta(1, 3),
            wobble=rng.uniform(0.0, 0.9),
            unevenness=max(0.0, rng.uniform(-0.4, 0.7)),
        )


def draw(photo: NDArray[np.uint8], rng: np.random.Generator, *, pencil: Pencil | None = None) -> Gray:
    """Draw a photo [S, S, 3] RGB as a sketch [S, S], with a random pencil if none is given.

    Draw at two or more times the size that the model reads and scale down, or lines turn jagged.
    """
    cv2 = load_opencv()
    pencil = pencil or Pencil.random(rng)
    size = len(photo)
    unit = size / UNIT_SIZE
    # Removes skin and hair texture but no edges.
    smoothed = np.asarray(cv2.bilateralFilter(photo, 5, 30, 3 * unit), np.uint8)
    strength = _line_strength(smoothed, pencil, unit)
    lines = _choose_lines(strength, pencil).astype(np.float32)
    if pencil.wobble:
        x, y = _grid(size)
        stray = pencil.wobble * unit
        x, y = (axis + stray * _smooth_noise(size, 9, rng) for axis in (x, y))
        moved = cv2.remap(lines, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        lines = np.asarray(moved, np.float32)
    lines = np.clip((cv2.GaussianBlur(lines, (0, 0), pencil.width * unit) - pencil.thinness) / 0.3, 0, 1)
    if pencil.unevenness:
        lines *= np.clip(1 + pencil.unevenness * (_smooth_noise(size, 6, rng) - 0.4), 0.4, 1)
    drawing: Gray = (255.5 - 255 * pencil.darkness * lines).astype(np.uint8)
    return drawing


@lru_cache(maxsize=1)
def load_opencv() -> Any:
    """Import OpenCV, which the runtime needs for nothing else."""
    try:
        import cv2
    except ImportError:
        raise PspError(
            "drawing a photo needs OpenCV; install it with: pip install opencv-python-headless"
        ) from None
    return cv2


def _line_strength(smoothed: NDArray[np.uint8], pencil: Pencil, unit: float) -> Field:
    """Return how much each place calls for a line, relative to its neighborhood."""
    cv2 = load_opencv()
    light = smoothed.astype(np.float32) / 255 + 0.1  # the floor keeps noise in black areas quiet
    inner = cv2.GaussianBlur(light, (0, 0), pencil.detail * unit)
    outer = cv2.GaussianBlur(inner, (0, 0), pencil.detail * unit * (pencil.reach**2 - 1) ** 0.5)
    dodge = 1 - inner / outer  # [H, W, 3], positive where darker than the surroundings
    red, green, blue = (np.ascontiguousarray(dodge[..., channel]) for channel in range(3))
    luminance = 0.3 * red + 0.5 * green + 0.2 * blue
    # The strongest channel sees a face before a background of the same brightness.
    strength = np.maximum(np.maximum(luminance, 0), 0.7 * np.maximum(np.maximum(red, green), blue))
    strength *= _attention(len(strength))
    # Relative to its surroundings, a faint eyelid counts as much as the edge of a black collar.
    quarter = cv2.resize(strength, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    around = cv2.resize(cv2.GaussianBlur(quarter, (0, 0), 2 * unit), strength.shape[::-1])
    relative: Field = strength / (around + 0.5 * around.mean() + 0.01)
    return relative


def _choose_lines(strength: Field, pencil: Pencil) -> NDArray[np.bool_]:
    """Keep connected lines that are long enough and strong somewhere (hysteresis)."""
    cv2 = load_opencv()
    weakest = np.quantile(strength[::2, ::2], 1 - pencil.ink)
    candidates = (strength > weakest).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(candidates, connectivity=8)
    sure = np.zeros(count, bool)
    sure[labels[strength > weakest * pencil.sureness]] = True
    extents = stats[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].max(axis=1)
    keep = sure & (extents >= pencil.shortest * len(strength))
    keep[0] = False  # label 0 is the paper
    lines: NDArray[np.bool_] = keep[labels]
    return lines


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[Field, Field]:
    y, x = np.mgrid[:size, :size].astype(np.float32)
    return x, y


@lru_cache(maxsize=4)
def _attention(size: int) -> Field:
    """Return how much attention each place gets: eyes, nose and mouth most, corners least."""
    x, y = ((axis + 0.5) / size for axis in _grid(size))
    from_head = ((x - 0.5) / 0.44) ** 2 + ((y - 0.52) / 0.54) ** 2
    from_face = ((x - 0.5) / 0.24) ** 2 + ((y - 0.58) / 0.26) ** 2
    attention = (1 + 0.8 * np.exp(-(from_face**2))) / (1 + 1.2 * np.clip(from_head - 0.7, 0, 1.5))
    return attention.astype(np.float32)


def _smooth_noise(size: int, knots: int, rng: np.random.Generator) -> Field:
    """Return noise in [-1, 1] that changes slowly: `knots` random values a side, interpolated."""
    cv2 = load_opencv()
    coarse = rng.uniform(-1, 1, (knots, knots)).astype(np.float32)
    smooth = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.asarray(smooth, np.float32)
