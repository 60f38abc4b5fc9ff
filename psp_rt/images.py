"""One picture, from what a caller has to what a model takes.

Inputs of another size are resized as in training: PIL's bilinear filter, which averages when it
shrinks; nearest for label maps, except where the manifest says bilinear (official segmentation
weights were trained on ids resized so).

What happens to each kind of picture:
    RGB model      grey is repeated; palettes become their colours
    gray model     colour becomes grey with PIL's L weights (299, 587, 114 thousandths)
    labels model   one channel only; a palette picture gives its indices
    alpha          is laid over white
    16-bit grey    keeps its upper 8 bits (for a labels model: its values)
    CMYK, YCbCr    are converted by PIL
A picture read from a path is turned as its EXIF orientation says; of several frames the first counts.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from .engine.manifest import InputSpec
from .errors import InputError

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 178_956_970  # PIL's own limit; half a gigabyte of RGB
COLORS = ("bgr", "rgb")
_ADDRESS = "; pictures are read from files: download it first"
_HINTS = {
    "http:": _ADDRESS,
    "https:": _ADDRESS,
    "-": "; pictures are not read from standard input",
}
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}


def resize(image: Pixels, height: int, width: int, *, method: str = "bilinear") -> Pixels:
    """Return a picture [H, W] or [H, W, C] in another size; it is not copied if it has it already.

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


def load(path: str | os.PathLike[str]) -> Image.Image:
    """Read a picture and turn it as its EXIF orientation says.

    Raises:
        InputError: The file is missing, no picture, cut off, or larger than MAX_PIXELS.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            _check_size(image.width, image.height, str(path))
            image.load()
            return ImageOps.exif_transpose(image)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(
            f"{path} is no picture that Pillow can read; expected PNG, JPEG, WebP or the like"
        ) from None
    except Image.DecompressionBombError:
        raise InputError(
            f"{path} is too large: expected at most {MAX_PIXELS} pixels; make it smaller first"
        ) from None
    except OSError as error:
        hint = _HINTS.get(str(path).partition("/")[0], "")
        raise InputError(f"{path} cannot be read: {error.strerror or error}{hint}") from None
    except (
        Exception
    ) as error:  # Pillow's decoders raise many kinds (SyntaxError, struct.error) on a corrupt file
        raise InputError(f"{path} is corrupt: {error}") from None


def to_input(image: Any, spec: InputSpec, *, color: str = "bgr") -> Pixels:
    """Return one picture as the encoder takes it.

    Args:
        image: A path, a PIL image, or uint8 [H, W], [H, W, 1] or [H, W, 3].
        spec: What the encoder takes.
        color: The order of an array's three channels, "bgr" or "rgb".

    Returns:
        uint8 [height, width, channels]; RGB, grey or label ids.
    """
    if isinstance(image, (str, os.PathLike)):
        image = load(image)
    pixels = (
        pixels_of(image, spec.kind) if isinstance(image, Image.Image) else _from_array(image, spec, color)
    )
    if spec.kind == "labels":
        _check_labels(pixels, spec)
    pixels = resize(pixels, spec.height, spec.width, method=spec.resize)
    return np.ascontiguousarray(pixels if pixels.ndim == 3 else pixels[:, :, None])


def swap_channels(pixels: Pixels, out: Pixels | None = None) -> Pixels:
    """Return RGB [..., 3] as BGR, and BGR as RGB, in new memory or in ``out``.

    Channel by channel: measured at 1024 x 1024, 2.3 ms, where copying pixels[..., ::-1] takes 12 ms.
    """
    out = np.empty(pixels.shape, np.uint8) if out is None else out
    for channel in range(3):
        out[..., channel] = pixels[..., 2 - channel]
    return out


def _check_size(width: int, height: int, what: str) -> None:
    if width < 1 or height < 1:
        raise InputError(f"{what} is {width} x {height} pixels; expected at least 1 x 1")
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{what} is {width} x {height} pixels; expected at most {MAX_PIXELS} in all; "
            "make it smaller first"
        )


def pixels_of(image: Image.Image, kind: str) -> Pixels:
    """Return the pixels of a PIL image in its own size: "rgb" [H, W, 3], "gray" or "labels" [H, W].

    Raises:
        InputError: It cannot be decoded, or has no such pixels.
    """
    _check_size(image.width, image.height, "the picture")
    try:
        image.load()
    except Exception as error:  # as many kinds as in `load`, and ValueError for one that is closed
        raise InputError(f"the picture cannot be decoded: {error}") from None
    if image.mode in ("I", "F"):
        raise InputError(
            f"the picture has mode {image.mode} with no set range; bring it to 0-255 and convert it to mode L"
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


def _ids_from_pil(image: Image.Image) -> Pixels:
    if image.mode not in ("P", "L", "1") and not image.mode.startswith("I;16"):
        raise InputError(
            f"a label map has one channel, this picture has mode {image.mode}; "
            "save the ids as a grey or palette PNG"
        )
    ids = np.asarray(image)
    if ids.dtype.itemsize == 2 and ids.max() > 255:  # of either byte order
        raise InputError(f"the label map holds the id {ids.max()}; expected at most 255")
    return ids.astype(np.uint8)


def _from_array(array: Any, spec: InputSpec, color: str) -> Pixels:
    """Return an array's pixels in the model's channels, in their own size."""
    pixels = check_array(array)
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1] if pixels.ndim == 3 else 0
    if channels not in (1, 3):
        raise InputError(
            f"a picture must be [H, W], [H, W, 1] or [H, W, 3], got {list(pixels.shape)}"
            + ("; drop the alpha channel with image[..., :3]" if channels == 4 else "")
        )
    _check_size(pixels.shape[1], pixels.shape[0], "the picture")
    if channels == 1:
        grey = pixels.reshape(pixels.shape[:2])
        return np.repeat(grey[:, :, None], 3, axis=2) if spec.kind == "rgb" else grey
    if spec.kind == "labels":
        raise InputError(f"a label map has one channel, got {list(pixels.shape)}; pass the ids as [H, W]")
    if spec.kind == "rgb":  # resized first, since a video frame has many more pixels to swap
        pixels = resize(pixels, spec.height, spec.width, method=spec.resize)
    rgb = swap_channels(pixels) if color == "bgr" else np.ascontiguousarray(pixels)
    return rgb if spec.kind == "rgb" else np.asarray(Image.fromarray(rgb).convert("L"))


def check_array(array: Any) -> Pixels:
    """Return ``array`` if it is uint8; it is never converted in silence."""
    if not isinstance(array, np.ndarray):
        opened = isinstance(array, (bytes, bytearray, memoryview)) or hasattr(array, "read")
        hint = "; open it first: PIL.Image.open(io.BytesIO(data))" if opened else ""
        raise InputError(
            f"a picture must be a path, a PIL image or a NumPy array, got {type(array).__name__}{hint}"
        )
    if array.dtype != np.uint8:
        hints = {
            "f": "(image * 255).round().astype(np.uint8) if it lies in 0-1",
            "u": "image.astype(np.uint8), or (image >> 8).astype(np.uint8) if it lies in 0-65535",
        }
        hint = hints.get(array.dtype.kind, "image.astype(np.uint8)")
        raise InputError(f"the picture has dtype {array.dtype}; expected uint8: convert it with {hint}")
    return array


def _check_labels(ids: Pixels, spec: InputSpec) -> None:
    largest, labels = int(ids.max()), spec.labels or 0
    if largest >= labels:
        raise InputError(f"the label map holds the id {largest}; this model knows 0 to {labels - 1}")
