"""Put a translated face back into its picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from ..images import Pixels
from .face import OVAL, Face, Points

FOREHEAD = 0.35  # how much further up than the mesh the mask goes, as a part of the face's height


def paste(
    image: Image.Image | Pixels,
    face: Face,
    result: Image.Image | Pixels,
    *,
    feather: float = 0.06,
    match_color: bool = False,
) -> Image.Image:
    """Return a picture with a face replaced by its result, at the picture's own resolution.

    Args:
        image: The upright picture that the face was found in.
        face: As `find` returns it.
        result: The model's picture of the aligned crop, of any size.
        feather: Width of the soft edge, as a part of the quad's side.
        match_color: Shift the result's colors so that they agree with the picture's at the edge.

    Returns:
        RGB, of the picture's size. Everything outside of the face's oval is untouched.
    """
    picture = (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB")
    shown = (result if isinstance(result, Image.Image) else Image.fromarray(result)).convert("RGB")

    # The part of the picture that changes.
    left, top = np.maximum(np.floor(face.quad.min(0)).astype(int), 0)
    right, bottom = np.minimum(np.ceil(face.quad.max(0)).astype(int), picture.size)
    if right <= left or bottom <= top:
        return picture.copy()
    size, offset = (int(right - left), int(bottom - top)), np.array([left, top], float)

    # The result, back in the picture's coordinates. It is reduced first where it is much larger.
    factor = int(shown.width / face.side)
    shown = shown.reduce(factor) if factor > 1 else shown
    coefficients = _from_picture(face.quad - offset + 0.5, shown.size)  # Pillow counts from a pixel's corner
    layer = shown.transform(size, Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)
    mask = face_mask(face, size, offset, feather)
    region = picture.crop((int(left), int(top), int(right), int(bottom)))
    if match_color:
        layer = _with_colors_of(region, layer, mask)
    changed = picture.copy()
    changed.paste(Image.composite(layer, region, mask), (int(left), int(top)))
    return changed


def paste_all(
    image: Image.Image,
    faces: Sequence[Face],
    results: Sequence[Image.Image],
    *,
    match_color: bool = False,
) -> Image.Image:
    """Return a picture with several faces replaced: the largest, which is the nearest, on top."""
    for face, result in sorted(zip(faces, results, strict=True), key=lambda pair: pair[0].side):
        image = paste(image, face, result, match_color=match_color)
    return image


def face_mask(face: Face, size: tuple[int, int], offset: Points, feather: float) -> Image.Image:
    """Return the soft mask of a face, mode L: the mesh's oval, stretched over the forehead.

    Args:
        face: As `find` returns it.
        size: Width and height of the mask.
        offset: Where its corner lies in the picture, (x, y).
        feather: Width of the soft edge, as a part of the quad's side.
    """
    oval = face.landmarks[list(OVAL)]
    up = face.quad[0] - face.quad[1]
    up /= np.hypot(*up)
    # Points above the eyes move up, the more the higher they are: the mesh ends below the hairline.
    height = (oval - face.eyes.mean(0)) @ up
    top = max(float(height.max()), 1e-6)
    whole = float(height.max() - height.min())
    oval = oval + up * (np.clip(height / top, 0, 1) * FOREHEAD * whole)[:, None]

    soft = max(feather * face.side, 0.5)
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).polygon([tuple(point) for point in oval - offset], fill=255)
    # Shrink by the blur's reach, so that the edge is transparent and stays inside of the quad.
    inside = Image.new("L", size, 0)
    center = face.quad.mean(0)
    quad = center + (face.quad - center) * (1 - 2 * soft / face.side)
    ImageDraw.Draw(inside).polygon([tuple(point) for point in quad - offset], fill=255)
    return ImageChops.darker(mask, inside).filter(ImageFilter.GaussianBlur(soft / 2))


def _from_picture(quad: Points, size: tuple[int, int]) -> tuple[float, ...]:
    """Return PIL's affine coefficients from the picture's pixels to the result's."""
    across, down = (quad[3] - quad[0]) / size[0], (quad[1] - quad[0]) / size[1]
    inverse = np.linalg.inv(np.stack([across, down], axis=1))
    shift = -inverse @ quad[0]
    return (*inverse[0], shift[0], *inverse[1], shift[1])


def _with_colors_of(region: Image.Image, layer: Image.Image, mask: Image.Image) -> Image.Image:
    """Return the layer, shifted and scaled so that its colors agree along the mask's soft edge."""
    alpha = np.asarray(mask)
    edge = (alpha > 25) & (alpha < 230)
    if edge.sum() < 16:
        return layer
    wanted, found = np.asarray(region, np.float32), np.asarray(layer, np.float32)
    mean, own_mean = wanted[edge].mean(0), found[edge].mean(0)
    spread = np.clip(wanted[edge].std(0) / np.maximum(found[edge].std(0), 1), 0.7, 1.4)
    return Image.fromarray(np.clip((found - own_mean) * spread + mean, 0, 255).astype(np.uint8))
