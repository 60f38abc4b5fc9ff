"""The crop of FFHQ's own preparation, written from its description: the oracle for `psp_rt.faces.crop`.

Steps (Karras et al., arXiv:1812.04948, and the data set's script): shrink by whole numbers, crop with a
border, pad with a blurred reflection, sample at 4096x4096, and reduce with LANCZOS.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

SAMPLED = 4096


def official_crop(picture: Image.Image, quad: np.ndarray, size: int) -> Image.Image:
    """Return the aligned crop [size, size] of a quad [4, 2]."""
    quad = quad.copy()
    side = math.dist(quad[0], quad[3])

    shrink = int(side / size / 2)
    if shrink > 1:
        width, height = (int(np.rint(length / shrink)) for length in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        quad, side = quad / shrink, side / shrink

    border = max(int(np.rint(side * 0.1)), 3)
    low, high = np.floor(quad.min(0)) - border, np.ceil(quad.max(0)) + border
    low, high = np.maximum(low, 0).astype(int), np.minimum(high, picture.size).astype(int)
    picture, quad = picture.crop((*low, *high)), quad - low

    before = np.maximum(border - np.floor(quad.min(0)), 0).astype(int)
    after = np.maximum(np.ceil(quad.max(0)) - picture.size + border, 0).astype(int)
    if max(*before, *after) > border - 4:
        least = int(np.rint(side * 0.3))
        before, after = np.maximum(before, least), np.maximum(after, least)
        picture, quad = reflected(picture, before, after, side * 0.02), quad + before

    corners = tuple((quad + 0.5).ravel())
    sampled = picture.transform((SAMPLED, SAMPLED), Image.Transform.QUAD, corners, Image.Resampling.BILINEAR)
    return sampled.resize((size, size), Image.Resampling.LANCZOS)


def reflected(picture: Image.Image, before: np.ndarray, after: np.ndarray, sigma: float) -> Image.Image:
    """Return a picture with a reflected border; blurred and, further out, mixed with the median color."""
    sides = list(zip(before[::-1], after[::-1], strict=True))
    image = np.pad(np.asarray(picture, np.float32), (*sides, (0, 0)), mode="reflect")
    inside = []
    for axis, (first, last) in enumerate(sides):
        at = np.arange(image.shape[axis], dtype=np.float32)
        inside.append(np.minimum(at / first, at[::-1] / last))  # 0 at the outer edge, 1 at the picture's
    depth = np.maximum(1 - inside[0][:, None], 1 - inside[1][None])[..., None]
    image += (blurred(image, sigma) - image) * np.clip(depth * 3 + 1, 0, 1)
    image += (np.median(image, axis=(0, 1)) - image) * np.clip(depth, 0, 1)
    return Image.fromarray(np.clip(np.rint(image), 0, 255).astype(np.uint8))


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """Return an image after a Gaussian of four sigmas' reach, mirrored at its edges as SciPy does."""
    reach = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        pads = [(0, 0)] * 3
        pads[axis] = (reach, reach)
        padded = np.pad(image, pads, mode="symmetric")
        count = image.shape[axis]
        image = sum(
            weight * np.take(padded, np.arange(start, start + count), axis)
            for start, weight in enumerate(kernel)
        )
    return image.astype(np.float32)
