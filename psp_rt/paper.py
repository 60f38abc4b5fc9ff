"""Paper and ink: how dark each place of a drawing is beside the paper around it.

`psp_rt.drawings` cleans drawings with this, and `trainer` the drawings that sketch models learn from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Pixels = npt.NDArray[np.uint8]
Gray = npt.NDArray[np.floating[Any]]  # [H, W] or [H, W, 3], 0 to 1

SIDE = 1024  # pixels of the longer side that drawings are reduced to; the lengths below mean that
SMALL = 96  # pixels of the longer side at which the paper is estimated
WINDOW, PERCENTILE_80 = 15, 180  # around a place of that estimate, in pixels and by rank
LINE = 17  # pixels at a quarter of SIDE: no line is broader (6 %)
SHADE = 0.4  # ink of an area up to which it counts as shadow


def even(pixels: Pixels) -> Pixels:
    """Return a drawing [H, W], dark on even white paper, of RGB [H, W, 3]."""
    ink = level(find_ink(np.asarray(pixels, np.float32) / 255))
    return np.rint(255 * (1 - ink)).astype(np.uint8)


def find_ink(rgb: Gray) -> Gray:
    """Return how much darker each pixel is than the paper around it, in the channel that shows it best."""
    paper = find_paper(rgb)
    ratio = np.clip(rgb / np.maximum(paper, 1e-3), 0, 1)
    ink: Gray = 1 - ratio.min(axis=2)
    return np.clip(ink - _shade(ink), 0, 1)


def level(ink: Gray) -> Gray:
    """Return ink with grain at 0 and the darkest lines at 1."""
    floor = min(_grain(ink), 0.4)
    lines = ink[ink > floor + 0.1]
    top = max(float(np.percentile(lines, 90)) if lines.size else 1.0, floor + 0.15)
    leveled: Gray = np.clip((ink - floor) / (top - floor), 0, 1)
    return leveled


def find_paper(rgb: Gray) -> Gray:
    """Return the brightness of the paper at each pixel and channel, [H, W, 3].

    A high percentile around each place follows shadows with sharp edges, but falls into large black
    areas; a smooth surface through all of the sheet bounds it there from below.
    """
    height, width = rgb.shape[:2]
    scale = SMALL / max(height, width)
    fitted = (max(8, round(width * scale)), max(8, round(height * scale)))
    channels = []
    for channel in range(3):
        plane = Image.fromarray(np.rint(rgb[:, :, channel] * 255).astype(np.uint8))
        coarse = plane.resize(fitted, Image.Resampling.BOX)
        bright = coarse.filter(ImageFilter.RankFilter(WINDOW, PERCENTILE_80))
        local = np.asarray(bright.filter(ImageFilter.GaussianBlur(4)), np.float32) / 255
        bounded = np.maximum(local, 0.6 * _surface(local))
        level = Image.fromarray(bounded.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
        channels.append(np.asarray(level, np.float32))
    paper: Gray = np.clip(np.stack(channels, axis=2), 0.02, 1)
    return paper


def _surface(plane: Gray) -> Gray:
    """Return the quadratic surface through the bright part of a plane."""
    height, width = plane.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1).reshape(-1, 6)
    values, kept = plane.ravel(), np.ones(plane.size, bool)
    for _ in range(4):  # drop what lies well below the surface: it is ink
        factors, *_ = np.linalg.lstsq(terms[kept], values[kept], rcond=None)
        fitted = terms @ factors
        kept = values > fitted - 0.08
        if kept.mean() < 0.1:
            break
    surface: Gray = np.clip(fitted, 0, 1).reshape(plane.shape).astype(np.float32)
    return surface


def _shade(ink: Gray) -> Gray:
    """Return what is left of shadows in ink: areas broader than any line that are gray, not black."""
    height, width = ink.shape
    scale = SIDE / 4 / max(height, width)
    fitted = (max(8, round(width * scale)), max(8, round(height * scale)))
    coarse = Image.fromarray(np.rint(ink * 255).astype(np.uint8)).resize(fitted, Image.Resampling.BOX)
    opened = Image.fromarray(_extreme(_extreme(np.asarray(coarse), np.minimum), np.maximum))
    smooth = opened.filter(ImageFilter.GaussianBlur(LINE / 3)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    shade = np.asarray(smooth, np.float32) / 255
    return np.where(shade < SHADE, shade, np.maximum(0, 2 * SHADE - shade))


def _extreme(plane: Pixels, extreme: Callable[[Pixels, Pixels], Pixels]) -> Pixels:
    """Return the least or greatest level in the square of side LINE around each pixel.

    By rows, then by columns, each in windows that double: far faster than Pillow's MinFilter.
    """
    for axis in (0, 1):
        padding = [(0, 0), (0, 0)]
        padding[axis] = (LINE // 2, LINE // 2)
        window = np.moveaxis(np.pad(plane, padding, mode="edge"), axis, 0)
        reach = 1
        while reach < LINE:
            step = min(reach, LINE - reach)
            window = extreme(window[: len(window) - step], window[step:])
            reach += step
        plane = np.moveaxis(window, 0, axis)
    return np.ascontiguousarray(plane)


def _grain(ink: Gray) -> float:
    """Return the ink level that the paper's grain reaches."""
    paper = ink[ink < 0.3]
    if not paper.size:
        return 0.0
    middle = float(np.median(paper))
    return middle + 4 * float(np.median(np.abs(paper - middle))) + 0.02
