"""Find, cut and put back faces. Only geometry and two small networks; no translator inside.

for face in psp_rt.faces.find("group.jpg"):
    aligned = psp_rt.faces.crop(photo, face, 256)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from ..errors import InputError
from ..images import check_array, load, over_white, pixels_of
from ..images.decode import is_source
from .align import crop, is_aligned
from .detect import Finder, MeshFinder, default_finder
from .face import Face, largest
from .paste import paste

__all__ = ["Face", "Finder", "MeshFinder", "crop", "find", "is_aligned", "largest", "paste", "upright_rgb"]


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
