"""Translate the faces of a photo: find, cut, translate, and put back.

`Translator.run` is exact and aligns nothing. This is what `Translator.run_faces` and the commands do
around it for models that expect FFHQ alignment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from ..errors import InputError
from ..images import check_array, load, over_white, pixels_of
from ..images.decode import is_source
from .align import crop, is_aligned
from .detect import Finder, default_finder
from .face import Face
from .paste import paste_all

Selection = Literal["largest", "all"]
Pictures = list[Image.Image]


@dataclass(frozen=True, kw_only=True)
class AlignedFace:
    """A face of a photo, ready for the encoder."""

    face: Face
    picture: Image.Image  # the aligned crop, or the photo itself where it is one already
    whole: bool  # whether it is the photo itself


@dataclass(frozen=True, kw_only=True)
class PhotoResult:
    """The results for one photo.

    Args:
        photo: The upright photo, RGB.
        faces: The faces that were translated, the largest first.
        results: For each face its results, one or one for each style.
        pasted: The photo with the results in it, one or one for each style; empty unless asked for.
        report: What was done: "1 face, cut from 812x812 at (1404, 620), turned 12 degrees".
    """

    photo: Image.Image
    faces: tuple[AlignedFace, ...]
    results: tuple[Pictures, ...]
    pasted: Pictures
    report: str


def find(image: Any, *, finder: Finder | None = None) -> list[Face]:
    """Return the faces in a picture, the largest first.

    Args:
        image: A path, bytes, an open file, a PIL image, or RGB uint8 [H, W, 3].
        finder: Another detector than the one that ships with psp_rt.

    Returns:
        Faces in pixels of the upright picture (turned as its EXIF orientation says); empty if there is none.
    """
    return (finder or default_finder()).find(np.asarray(upright_rgb(image)))


def upright_rgb(image: Any) -> Image.Image:
    """Return a picture as upright RGB: the pixels that `find`, `crop` and `paste` speak of."""
    if is_source(image):
        image = load(image)
    if isinstance(image, Image.Image):
        return Image.fromarray(pixels_of(image, "rgb"))
    array = check_array(image)
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4)):
        return over_white(Image.fromarray(array.squeeze(2) if array.shape[2:] == (1,) else array)).convert(
            "RGB"
        )
    raise InputError(f"a picture must be [H, W] or [H, W, 3], got {list(array.shape)}")


def translate_faces(
    run: Callable[[Pictures], Sequence[Image.Image | Pictures]],
    photo: Any,
    *,
    size: int,
    select: Selection = "largest",
    paste: bool = False,
    match_color: bool = False,
    finder: Finder | None = None,
) -> PhotoResult:
    """Translate the faces of a photo.

    Args:
        run: Translates a list of aligned pictures; gives a picture or a list of pictures for each.
        photo: A path, bytes, an open file, a PIL image, or RGB uint8 [H, W, 3].
        size: Side of the aligned crops in pixels.
        select: "largest" or "all" faces.
        paste: Also put the results back into the photo.
        match_color: Shift the pasted colors so that they agree with the photo's at the edge.
        finder: Another face detector.

    Raises:
        InputError: The photo shows no face, or cannot be read.
    """
    upright = upright_rgb(photo)
    aligned, report = align_faces(upright, size=size, select=select, finder=finder)
    found = run([face.picture for face in aligned])
    results = tuple(pictures if isinstance(pictures, list) else [pictures] for pictures in found)
    pasted = []
    for style in range(len(results[0]) if paste else 0):
        of_style = [pictures[style] for pictures in results]
        pasted.append(paste_all(upright, [face.face for face in aligned], of_style, match_color=match_color))
    return PhotoResult(photo=upright, faces=aligned, results=results, pasted=pasted, report=report)


def align_faces(
    upright: Image.Image, *, size: int, select: Selection = "largest", finder: Finder | None = None
) -> tuple[tuple[AlignedFace, ...], str]:
    """Return the faces of an upright RGB photo, aligned, and what was done.

    A photo that is the aligned crop of its face already stays as it is, to the last bit.

    Raises:
        InputError: It shows no face.
    """
    found = find(upright, finder=finder)
    if not found:
        raise InputError("no face was found in the picture")
    chosen = found if select == "all" else found[:1]
    if len(found) == 1 and is_aligned(found[0], *upright.size):
        return (AlignedFace(face=found[0], picture=upright, whole=True),), "1 face, already aligned"
    aligned = tuple(AlignedFace(face=face, picture=crop(upright, face, size), whole=False) for face in chosen)
    return aligned, _report(found, chosen)


def _report(found: Sequence[Face], chosen: Sequence[Face]) -> str:
    """Describe what was cut: of one face where and how it lies, of several how many."""
    if len(chosen) > 1:
        return f"{len(chosen)} faces, cut and turned upright"
    face = chosen[0]
    left, top = face.quad.min(0)
    others = len(found) - 1
    more = f", the largest of {len(found)}; --faces all takes the others too" if others else ""
    return (
        f"1 face, cut from {face.side:.0f}x{face.side:.0f} at ({left:.0f}, {top:.0f}), "
        f"turned {face.turn:.0f} degrees{more}"
    )
