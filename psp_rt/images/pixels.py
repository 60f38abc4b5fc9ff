"""One picture, from what a caller has to what a model takes.

Inputs of another size are resized as in training: PIL's bilinear filter, which averages when it
shrinks; nearest for label maps, except where the manifest says bilinear (official segmentation
weights were trained on ids resized like that).

What happens to each kind of picture:
    RGB model      gray is repeated; palettes become their colors
    gray model     color becomes gray with PIL's L weights (299, 587, 114 thousandths)
    labels model   one channel only, from a lossless file; a palette picture gives its indices
    alpha          is laid over white
    16-bit gray    keeps its upper 8 bits (for a labels model: its values)
    CMYK, YCbCr    are converted by PIL
    EXIF           the picture is turned as its orientation says
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..engine.manifest import InputSpec
from ..errors import InputError
from .decode import check_lossless, check_pixels, is_source, load, upright

Pixels = npt.NDArray[np.uint8]

Color = Literal["bgr", "rgb"]
COLORS = ("bgr", "rgb")
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}
_CONVERSIONS = {  # from other dtypes, by numpy's kind; for pictures and for label ids
    "f": ("(image * 255).round().astype(np.uint8) if it lies in 0-1", "ids.astype(np.uint8)"),
    "u": (
        "image.astype(np.uint8), or (image >> 8).astype(np.uint8) if it lies in 0-65535",
        "ids.astype(np.uint8)",
    ),
    "b": ("image.astype(np.uint8) * 255", "ids.astype(np.uint8)"),
}


def resize(image: Pixels, height: int, width: int, *, method: str = "bilinear") -> Pixels:
    """Return a picture in another size; it is not copied if it already has that size.

    Args:
        image: uint8 [H, W] or [H, W, C], C 1 to 4.
        height: In pixels.
        width: In pixels.
        method: "bilinear", which averages when it shrinks (PIL's antialiasing), or "nearest".
    """
    if method not in _FILTERS:
        raise InputError(f"method is {method!r}; expected one of {', '.join(_FILTERS)}")
    if image.shape[:2] == (height, width):
        return image
    if image.ndim == 3 and image.shape[2] == 1:
        return resize(image[:, :, 0], height, width, method=method)[:, :, None]
    return np.asarray(Image.fromarray(image).resize((width, height), _FILTERS[method]))


def to_input(image: Any, spec: InputSpec, *, color: str = "bgr") -> Pixels:
    """Return one picture as the encoder takes it.

    Args:
        image: A path, the bytes of a file, an open file, a PIL image, or uint8 [H, W], [H, W, 1],
            [H, W, 3] or [H, W, 4].
        spec: What the encoder takes.
        color: The order of an array's channels, "bgr" or "rgb"; alpha is last in both.

    Returns:
        uint8 [height, width, channels]; RGB, gray or label ids.
    """
    return sized_input(image, spec, color=color)[0]


def sized_input(image: Any, spec: InputSpec, *, color: str = "bgr") -> tuple[Pixels, tuple[int, int]]:
    """Return one picture as the encoder takes it, and its own (height, width) before it was resized."""
    if is_source(image):
        image = load(image, exact=spec.kind == "labels")
    if isinstance(image, Image.Image):
        pixels = pixels_of(image, spec.kind)
        size = pixels.shape[:2]
    else:
        pixels = _from_array(image, spec, color)
        size = image.shape[:2]
    if spec.kind == "labels":
        _check_labels(pixels, spec)
    pixels = resize(pixels, spec.height, spec.width, method=spec.resize)
    return np.ascontiguousarray(pixels if pixels.ndim == 3 else pixels[:, :, None]), size


def swap_channels(pixels: Pixels, out: Pixels | None = None) -> Pixels:
    """Return RGB [..., 3] as BGR, and BGR as RGB, in new memory or in ``out``.

    Channel by channel: measured at 1024 x 1024, 2.3 ms, where copying pixels[..., ::-1] takes 12 ms.
    """
    out = np.empty(pixels.shape, np.uint8) if out is None else out
    for channel in range(3):
        out[..., channel] = pixels[..., 2 - channel]
    return out


def pixels_of(image: Image.Image, kind: str) -> Pixels:
    """Return the pixels of a PIL image in its own size: "rgb" [H, W, 3], "gray" or "labels" [H, W].

    Raises:
        InputError: It cannot be decoded, or has no such pixels.
    """
    check_pixels(image.width, image.height, "the picture")
    if kind == "labels":
        check_lossless(image)
    try:
        image.load()
        image = upright(image)
    except MemoryError:
        raise
    except Exception as error:  # as many kinds as in `load`, and ValueError for one that is closed
        raise InputError(f"the picture cannot be decoded: {error}") from None
    if image.mode in ("I", "F"):
        raise InputError(
            f"the picture has mode {image.mode}, whose range is not fixed; scale it to 0-255 and convert it "
            "to mode L"
        )
    if kind == "labels":
        return _ids_from_pil(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.asarray(over_white(image).convert("RGB" if kind == "rgb" else "L"))


def over_white(image: Image.Image) -> Image.Image:
    """Return a picture without transparency: what is transparent becomes white."""
    if not image.has_transparency_data:
        return image
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def check_array(array: Any, kind: str = "rgb") -> Pixels:
    """Return ``array`` if it is uint8; other types are never converted silently."""
    if not isinstance(array, np.ndarray):
        raise InputError(
            "a picture must be a path, the bytes of a file, an open file, a PIL image or a NumPy array, got "
            f"{type(array).__name__}"
        )
    if array.dtype != np.uint8:
        of_pictures, of_ids = _CONVERSIONS.get(
            array.dtype.kind, ("image.astype(np.uint8)", "ids.astype(np.uint8)")
        )
        what, hint = ("label map", of_ids) if kind == "labels" else ("picture", of_pictures)
        raise InputError(f"the {what} has dtype {array.dtype}; expected uint8: convert it with {hint}")
    return array


def _ids_from_pil(image: Image.Image) -> Pixels:
    if image.mode not in ("P", "L", "1") and not image.mode.startswith("I;16"):
        raise InputError(
            f"a label map has one channel, this picture has mode {image.mode}; "
            "save the ids as a gray or palette PNG"
        )
    ids = np.asarray(image)
    if ids.dtype.itemsize == 2 and ids.max() > 255:  # of either byte order
        raise InputError(f"the label map holds the id {ids.max()}; expected at most 255")
    return ids.astype(np.uint8)


def _from_array(array: Any, spec: InputSpec, color: str) -> Pixels:
    """Return an array's pixels in the model's channels, in their own size."""
    pixels = check_array(array, spec.kind)
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1] if pixels.ndim == 3 else 0
    if channels not in (1, 3, 4):
        raise InputError(
            f"a picture must be [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got {list(pixels.shape)}"
        )
    check_pixels(pixels.shape[1], pixels.shape[0], "the picture")
    if channels == 1:
        gray = pixels.reshape(pixels.shape[:2])
        return np.repeat(gray[:, :, None], 3, axis=2) if spec.kind == "rgb" else gray
    if spec.kind == "labels":
        raise InputError(f"a label map has one channel, got {list(pixels.shape)}; pass the ids as [H, W]")
    if channels == 4:
        pixels = np.asarray(over_white(Image.fromarray(pixels)))
    if spec.kind == "rgb":  # resized first, because a video frame has many more pixels to swap
        pixels = resize(pixels, spec.height, spec.width, method=spec.resize)
    rgb = swap_channels(pixels) if color == "bgr" else np.ascontiguousarray(pixels)
    return rgb if spec.kind == "rgb" else np.asarray(Image.fromarray(rgb).convert("L"))


def _check_labels(ids: Pixels, spec: InputSpec) -> None:
    largest, labels = int(ids.max()), spec.labels or 0
    if largest >= labels:
        hint = ""
        if largest == 255:
            hint = "; 255 often means 'ignore': give those pixels a label, such as ids[ids == 255] = 0"
        raise InputError(f"the label map holds the id {largest}; this model knows 0 to {labels - 1}{hint}")
