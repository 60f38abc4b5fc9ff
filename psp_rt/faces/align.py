"""Cut faces as FFHQ does: shrink, crop, pad with a blurred reflection, transform with antialiasing.

The data set's own recipe (Karras et al., arXiv:1812.04948), which pSp's and e4e's users follow too.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageFilter

from ..images import Pixels
from .face import Face, Points

ALIGNED = 0.03  # of the side: a picture whose quad is no further from its corners is aligned already


def is_aligned(face: Face, width: int, height: int) -> bool:
    """Return whether a picture already is the aligned crop of its face, up to 3 % of its side."""
    corners = np.array([[0, 0], [0, height], [width, height], [width, 0]], float) - 0.5
    distance = np.hypot(*(face.quad - corners).T).max()
    return bool(distance <= ALIGNED * max(width, height))


def crop(image: Image.Image | Pixels, face: Face, size: int) -> Image.Image:
    """Return the aligned crop of a face.

    Args:
        image: The upright picture that the face was found in: PIL, or RGB uint8 [H, W, 3].
        face: As `find` returns it.
        size: Side of the crop in pixels.

    Returns:
        RGB [size, size]. Outside of the picture its reflection is shown, blurred with the distance.
    """
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture, quad = picture.convert("RGB"), face.quad.copy()
    side = face.side

    # Shrink: what follows samples the picture at about twice the crop's resolution.
    shrink = math.floor(side / size * 0.5)
    if shrink > 1:
        smaller = (round(picture.width / shrink), round(picture.height / shrink))
        picture = picture.resize(smaller, Image.Resampling.LANCZOS)
        quad, side = quad / shrink, side / shrink

    # Crop to the square with some border.
    border = max(round(side * 0.1), 3)
    low, high = np.floor(quad.min(0)).astype(int) - border, np.ceil(quad.max(0)).astype(int) + border
    left, top = np.maximum(low, 0)
    right, bottom = np.minimum(high, picture.size)
    if right - left < 1 or bottom - top < 1:  # a quad beside the picture
        left, top, right, bottom = 0, 0, *picture.size
    picture, quad = picture.crop((left, top, right, bottom)), quad - [left, top]

    # Pad where the square leaves the picture.
    beyond = np.concatenate([-quad.min(0) + border, quad.max(0) - picture.size + border])
    pads = np.maximum(np.ceil(beyond).astype(int), 0)
    if pads.max() > border - 4:
        pads = np.maximum(pads, round(side * 0.3))
        picture, quad = _padded(picture, pads, side), quad + pads[:2]

    # Transform with antialiasing: sample finer, then average.
    finer = max(1, math.ceil(side / size))
    corners = tuple((quad + 0.5).ravel())  # Pillow counts from the first pixel's corner
    sampled = picture.transform(
        (size * finer, size * finer), Image.Transform.QUAD, corners, Image.Resampling.BILINEAR
    )
    return sampled if finer == 1 else sampled.resize((size, size), Image.Resampling.BOX)


def _padded(picture: Image.Image, pads: Points, side: float) -> Image.Image:
    """Return a picture with a reflected border that is blurred, and fades into its median color."""
    left, top, right, bottom = (int(pad) for pad in pads)
    reflected = np.pad(np.asarray(picture), ((top, bottom), (left, right), (0, 0)), mode="reflect")
    height, width = reflected.shape[:2]
    y, x = np.ogrid[:height, :width]
    # How far into the border a pixel lies: 0 at the picture's edge, 1 at the outer edge.
    inside_x = np.minimum(x / max(left, 1), (width - 1 - x) / max(right, 1))
    inside_y = np.minimum(y / max(top, 1), (height - 1 - y) / max(bottom, 1))
    depth = np.maximum(1 - inside_x, 1 - inside_y)[:, :, None]

    image = reflected.astype(np.float32)
    blur = Image.fromarray(reflected).filter(ImageFilter.GaussianBlur(side * 0.02))
    image += (np.asarray(blur, np.float32) - image) * np.clip(depth * 3 + 1, 0, 1)
    image += (np.median(image, axis=(0, 1)) - image) * np.clip(depth, 0, 1)
    return Image.fromarray(np.clip(np.rint(image), 0, 255).astype(np.uint8))
