"""Clean drawings on paper, so that they look like the drawings that sketch models are trained on.

    even paper      divide by the paper's brightness, so that shadows and colored paper become white
    ink             dark lines on light paper; light lines on a dark ground are inverted
    levels          the paper's grain becomes white, the darkest ink black
    ruled paper     straight lines over all of the sheet are dropped
    frame           a line around the whole sheet is dropped
    crop            a square around the face as FFHQ cuts it, or around the ink if no face is seen

A drawing that is clean already, dark lines on white in the right place, stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from . import faces
from .errors import DeviceError, InputError
from .faces import Face, Finder
from .images import Pixels
from .paper import SIDE, Gray, find_ink, find_paper, level
from .pencil import Pencil, draw

WHITE = 250  # gray level from which paper counts as white
CLEAN_SHARE = 0.55  # of white pixels in a clean drawing
DARK_GROUND = 0.45  # brightness of the ground below which lines are lighter than it
PLACED = 0.13  # of the side: a face this near to FFHQ's place needs no crop
SURROUNDINGS = 1.5  # side of the part around a face that is cleaned, as a multiple of the face's
RULE_WIDTH = 10  # pixels at SIDE that a rule has at most
RULES = 5  # straight lines over all of the sheet that make it ruled paper
MARGIN = 0.04  # around the ink, if the crop follows the ink
PHOTO_PAPER = 0.65  # share of paper below which a picture may be a photo
PHOTO_TEXTURE = 0.06  # mean local contrast of what is not paper; hatching and engraving have more


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A cleaned drawing.

    Args:
        picture: Mode L, dark lines on white.
        report: What was done: "paper evened, lines inverted, cropped around the face".
        quad: The corners of the crop in the upright input, [4, 2] as (x, y): top left, bottom left, bottom
            right, top right.
    """

    picture: Image.Image
    report: str
    quad: npt.NDArray[np.float64]


def clean(image: Any, *, size: int = 512, finder: Finder | None = None) -> Drawing:
    """Return a drawing with even white paper, cropped as sketch models expect.

    Args:
        image: A path, bytes, an open file, a PIL image, or RGB uint8 [H, W, 3].
        size: Side of the result in pixels, if it is cropped.
        finder: Another face detector for the crop.

    Raises:
        InputError: The picture looks like a photo, has no lines, or cannot be read.
    """
    upright = faces.upright_rgb(image)
    levels = np.asarray(upright.convert("L"))
    whole = _corners(*upright.size)
    found = find_in_drawing(levels, finder)
    if _is_clean(levels) and _is_placed(levels, found):
        return Drawing(picture=Image.fromarray(levels), report="clean already", quad=whole)

    # On a dark ground the lines are light, unless the dark is that of a table.
    if _has_dark_ground(upright):
        both = [face for face in (found, find_in_drawing(255 - levels, finder)) if face is not None]
        found = max(both, key=lambda face: face.score, default=None)

    # Leave out what lies far from the face, such as the table; then reduce, so that lengths mean the same
    # for a scan of any resolution.
    region = _around_face(found, upright.size)
    small = upright.crop(region)
    scale = min(1.0, SIDE / max(small.size))
    if scale < 1:
        fitted = (max(1, round(small.width * scale)), max(1, round(small.height * scale)))
        small = small.resize(fitted, Image.Resampling.BOX)
    if looks_like_photo(small):
        raise InputError(
            "it looks like a photo, not a drawing; --from-photo draws it first, --no-clean uses it as it is"
        )

    # Paper and ink.
    done = []
    rgb = np.asarray(small, np.float32) / 255
    if _has_dark_ground(small):
        rgb = 1 - rgb
        done.append("lines inverted")
    ink, ruled = _without_rules(find_ink(rgb))
    ink, framed = _without_frame(level(ink))
    done += ["ruled lines dropped"] if ruled else []
    done += ["frame dropped"] if framed else []
    if ink.max() < 0.5 or (ink > 0.5).mean() < 2e-4:
        raise InputError("it shows no lines that could be a drawing")
    done.append("paper evened")
    sheet = np.rint(255 * (1 - ink)).astype(np.uint8)

    # Crop around the face, or around the ink.
    corner = np.array(region[:2], float)
    seen = find_in_drawing(sheet, finder)
    if seen is not None:
        quad = seen.quad + 0.5  # from the corner of the first pixel
    elif found is not None:
        quad = (found.quad + 0.5 - corner) * scale
    else:
        quad = _around_ink(ink)
    done.append(f"cropped around the {'lines' if seen is None and found is None else 'face'}")
    cropped = _cut(sheet, quad, size)
    return Drawing(picture=cropped, report=", ".join(done), quad=quad / scale + corner)


def looks_like_photo(image: Image.Image) -> bool:
    """Return whether a picture is rather a photo than a drawing.

    Most of a drawing is paper. Where it is not, because it is shaded or engraved, its tones are made of
    lines, so that neighboring pixels differ; those of a photo are smooth.
    """
    fitted = image.convert("RGB")
    fitted.thumbnail((384, 384), Image.Resampling.BOX)
    rgb = np.asarray(fitted, np.float32) / 255
    sides = [rgb, 1 - rgb] if _has_dark_ground(fitted) else [rgb]
    return all(_is_smooth(side) for side in sides)


def _is_smooth(rgb: Gray) -> bool:
    ink = 1 - np.clip(rgb / find_paper(rgb), 0, 1).min(axis=2)
    if float((ink < 0.12).mean()) > PHOTO_PAPER:
        return False
    levels = Image.fromarray(np.rint(ink * 255).astype(np.uint8))
    contrast = np.abs(ink - np.asarray(levels.filter(ImageFilter.GaussianBlur(1.5)), np.float32) / 255)
    return float(contrast[ink >= 0.12].mean()) < PHOTO_TEXTURE


def find_in_drawing(levels: Pixels, finder: Finder | None = None) -> Face | None:
    """Return the largest face in a drawing, if the detector sees one; lines of any size are enough."""
    try:
        found = faces.find(np.repeat(levels[:, :, None], 3, axis=2), finder=finder)
    except DeviceError:  # no runtime for the detector; the crop then follows the ink
        return None
    return found[0] if found and abs(found[0].turn) < 60 else None


def _around_face(found: Face | None, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the part of a picture that matters, as Pillow's box: all of it, if no face is seen."""
    if found is None:
        return (0, 0, *size)
    center, reach = found.quad.mean(0), SURROUNDINGS / 2 * found.side
    left, top = np.maximum(np.floor(center - reach), 0).astype(int)
    right, bottom = np.minimum(np.ceil(center + reach), size).astype(int)
    return int(left), int(top), int(right), int(bottom)


def _is_clean(levels: Pixels) -> bool:
    """Return whether a drawing is dark lines on white paper, without shadow or grain."""
    white = (levels >= WHITE).mean()
    gray = ((levels > 200) & (levels < WHITE)).mean()  # grain and shadow are light gray
    return bool(white >= CLEAN_SHARE and gray < 0.1 and white > 4 * gray)


def _is_placed(levels: Pixels, found: Face | None) -> bool:
    """Return whether the face already is where the model expects it."""
    height, width = levels.shape
    if not 0.9 < width / height < 1.1:
        return False
    if found is not None:
        return bool(np.hypot(*(found.quad - _corners(width, height)).T).max() < PLACED * max(width, height))
    rows, columns = (np.flatnonzero((levels < 200).any(axis=axis)) for axis in (1, 0))
    return bool(len(rows) and np.ptp(rows) > 0.8 * height and np.ptp(columns) > 0.6 * width)


def _corners(width: int, height: int) -> npt.NDArray[np.float64]:
    return np.array([[0, 0], [0, height], [width, height], [width, 0]], float)


def _has_dark_ground(image: Image.Image) -> bool:
    """Return whether lines are lighter than their ground.

    The most common brightness is dark, and what stands out from its surroundings is light. Paper in a deep
    shadow is dark, too, but the lines on it are darker.
    """
    gray = image.convert("L")
    gray.thumbnail((384, 384), Image.Resampling.BOX)
    light = np.asarray(gray, np.float32) / 255
    if np.median(light) >= DARK_GROUND or (light > 0.6).mean() >= 0.45:
        return False
    around = np.asarray(gray.filter(ImageFilter.GaussianBlur(6)), np.float32) / 255
    return bool(((light - around) ** 3).sum() > 0)


def _without_rules(ink: Gray) -> tuple[Gray, bool]:
    """Return ink without the lines of ruled or squared paper, if they are level, and whether there were any.

    A rule is a thin row or column most of which is ink; its own median is what it adds to the drawing.
    """
    ruled = False
    kept = ink.copy()
    for axis in (0, 1):
        middle = np.median(ink, axis=1 - axis)
        # What is left of thin peaks: broad ones are areas of ink.
        around = np.pad(middle, RULE_WIDTH, mode="edge")
        lowest = np.lib.stride_tricks.sliding_window_view(around, RULE_WIDTH + 1).min(axis=1)
        opened = np.lib.stride_tricks.sliding_window_view(lowest, RULE_WIDTH + 1)[: len(middle)].max(axis=1)
        rules = np.where(middle - opened > 0.04, middle - opened, 0)
        if int((np.diff((rules > 0).astype(int)) > 0).sum()) >= RULES:
            ruled = True
            kept -= 1.3 * np.expand_dims(rules, 1 - axis)
    return np.clip(kept, 0, 1), ruled


def _without_frame(ink: Gray) -> tuple[Gray, bool]:
    """Return ink without straight lines along the edges of the sheet, and whether there were any."""
    framed = False
    kept = ink.copy()
    for axis in (0, 1):
        count = kept.shape[axis]
        share = (kept > 0.3).mean(axis=1 - axis)  # of each row, then of each column
        band = max(1, round(0.12 * count))
        first = np.flatnonzero(share[:band] > 0.6)
        last = np.flatnonzero(share[count - band :] > 0.6)
        border = round(0.01 * count) + 1
        index: list[slice] = [slice(None), slice(None)]
        if len(first):
            index[axis] = slice(0, int(first[-1]) + 1 + border)
            kept[tuple(index)] = 0
        if len(last):
            index[axis] = slice(max(0, count - band + int(last[0]) - border), count)
            kept[tuple(index)] = 0
        framed |= bool(len(first) or len(last))
    return kept, framed


def _around_ink(ink: Gray) -> npt.NDArray[np.float64]:
    """Return the square around the ink, [4, 2]: its height counts, since shoulders may be wide."""
    spans = []
    for axis in (1, 0):
        weight = np.cumsum((ink > 0.3).sum(axis=axis))
        spans.append(np.searchsorted(weight, [0.004 * weight[-1], 0.996 * weight[-1]]))
    (top, bottom), (left, right) = spans
    side = max(bottom - top, 0.85 * (right - left), 8) * (1 + 2 * MARGIN)
    x, y = (left + right) / 2, (top + bottom) / 2
    half = side / 2
    return np.array([[x - half, y - half], [x - half, y + half], [x + half, y + half], [x + half, y - half]])


def _cut(sheet: Pixels, quad: npt.NDArray[np.float64], size: int) -> Image.Image:
    """Return a square of a sheet, white outside of it, averaged where it shrinks."""
    side = float(np.hypot(*(quad[3] - quad[0])))
    finer = max(1, round(side / size))
    across, down = (quad[3] - quad[0]) / (size * finer), (quad[1] - quad[0]) / (size * finer)
    matrix = (across[0], down[0], quad[0, 0], across[1], down[1], quad[0, 1])
    sampled = Image.fromarray(sheet).transform(
        (size * finer, size * finer), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=255
    )
    return sampled if finer == 1 else sampled.resize((size, size), Image.Resampling.BOX)


def from_photo(image: Any, *, size: int = 512, finder: Finder | None = None) -> Drawing:
    """Draw the largest face of a photo as the sketches are drawn that our models are trained on.

    Args:
        image: A path, bytes, an open file, a PIL image, or RGB uint8 [H, W, 3].
        size: Side of the drawing in pixels.
        finder: Another face detector.

    Raises:
        InputError: The photo shows no face, or cannot be read.
        PspError: OpenCV is not installed.
    """
    upright = faces.upright_rgb(image)
    (aligned,), report = faces.align_faces(upright, size=size, finder=finder)
    photo = aligned.picture.resize((size, size), Image.Resampling.LANCZOS)  # if it was aligned already
    drawing = draw(np.asarray(photo), np.random.default_rng(0), pencil=Pencil())
    quad = _corners(*upright.size) if aligned.whole else aligned.face.quad + 0.5
    return Drawing(picture=Image.fromarray(drawing), report=f"{report}, drawn", quad=quad)
