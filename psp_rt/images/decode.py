"""Decode pictures from files, bytes and streams: safely, upright, and with bounded memory.

Pillow decides by content, not by ending, and only formats that it decodes itself are used: it would hand
EPS, PDF and WMF to other programs. Of animated and multi-page files the first frame counts. HEIC is read
where ``pillow-heif`` is installed.
"""

from __future__ import annotations

import io
import math
import os
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError, PixelLimitError, out_of_memory

# Decoding needs up to 8 bytes a pixel for a moment: about 0.8 GB at this size.
MAX_PIXELS = int(os.environ.get("PSP_RT_MAX_PIXELS") or 100_000_000)

# The formats with a signature of their own come first; those before WEBP are registered without imports.
FORMATS = (
    *("PNG", "JPEG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "MPO", "AVIF", "JPEG2000", "HEIF", "QOI", "PSD"),
    *("DDS", "ICO", "ICNS", "DIB", "PCX", "SGI", "SUN", "MSP", "PIXAR", "SPIDER", "XBM", "XPM", "IM", "TGA"),
)
# Formats that change pixel values, which are ids in a label map. Lossless WebP is told apart by its chunk.
ORIENTATION = 0x0112  # the EXIF tag
LOSSY = {
    "JPEG": "a JPEG file",
    "MPO": "a JPEG file",
    "AVIF": "an AVIF file",
    "HEIF": "an HEIC file",
    "JPEG2000": "a JPEG 2000 file",
    "WEBP": "a lossy WebP file",
}
LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")  # how a TIFF can hold another of these
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_NOT_FILES = {
    "http:": "; psp_rt reads files: download it first",
    "https:": "; psp_rt reads files: download it first",
    "-": "; pictures are not read from standard input",
}

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]


def is_source(value: Any) -> bool:
    """Return whether `load` can read a value: a path, bytes, or an open binary file."""
    return isinstance(value, (str, os.PathLike, bytes, bytearray, memoryview)) or callable(
        getattr(value, "read", None)
    )


def load(source: Source, *, exact: bool = False, max_pixels: int | None = None) -> Image.Image:
    """Decode a picture and turn it as its EXIF orientation says.

    A JPEG with more than `max_pixels` is decoded at half, a quarter or an eighth of its size.

    Args:
        source: A path, the bytes of a file, or an open binary file.
        exact: Every value counts, as in a label map: refuse lossy formats.
        max_pixels: A lower limit than `MAX_PIXELS`, which bounds the memory.

    Raises:
        InputError: The source is missing, not a picture, cut off, or lossy though `exact`.
        PixelLimitError: It has more than `max_pixels`.
    """
    name, file = _open(source)
    try:
        with Image.open(file, formats=_formats()) as image:
            if exact:
                _check_exact(image, name)
            _check_size(image, name, min(max_pixels or MAX_PIXELS, MAX_PIXELS))
            image.load()
            turned = upright(image)
            turned.format = None if exact else turned.format  # checked, with its file at hand
            return turned
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{name} is not a picture that Pillow can read{_hint(file)}") from None
    except Image.DecompressionBombError:
        raise _too_large(name, "too large", MAX_PIXELS) from None
    except MemoryError as error:
        raise out_of_memory(error, f"decoding {name}", "make it smaller, or free memory") or error from error
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # Pillow's decoders raise SyntaxError, struct.error and more on corrupt files
        raise InputError(f"{name} is corrupt: {error}") from None
    finally:
        if file is not source:
            file.close()


def upright(image: Image.Image) -> Image.Image:
    """Return a picture turned as its EXIF orientation says, 16-bit gray as mode I;16."""
    # Pillow before 11 gives 16-bit PNGs mode I, and every version does so for 16-bit PGMs.
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        exif, image = image.getexif(), Image.fromarray(np.asarray(image).astype(np.uint16))
        image.info["exif"] = exif.tobytes()
    # Without an orientation, Pillow would return a copy.
    return image if image.getexif().get(ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)


def check_lossless(image: Image.Image) -> None:
    """Raise InputError if a PIL image comes from a lossy file, whose values are not exact."""
    if image.format in LOSSY or image.format == "TIFF":
        _check_exact(image, "the label map")


def check_pixels(width: int, height: int, name: str, limit: int | None = None) -> None:
    """Raise InputError for a picture without pixels or with more than `limit`, or `MAX_PIXELS`."""
    limit = limit or MAX_PIXELS
    if width < 1 or height < 1:
        raise InputError(f"{name} is {width} x {height} pixels; expected at least 1 x 1")
    if width * height > limit:
        raise _too_large(name, f"{width} x {height} pixels", limit)


def readable_suffixes() -> frozenset[str]:
    """Return the endings of all picture formats that `load` reads here: ".png", ".jpg", ..."""
    return _suffixes(reading=True)


def writable_suffixes() -> frozenset[str]:
    """Return the endings of all picture formats that can be written here."""
    return _suffixes(reading=False)


def is_picture_file(path: Path) -> bool:
    """Return whether a file's ending is that of a picture format that `load` reads here."""
    return path.suffix.lower() in readable_suffixes()


@cache
def _formats() -> list[str]:
    """Return the formats to try, HEIC among them where its decoder is installed."""
    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
    except ImportError:
        pass
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


@cache
def _suffixes(*, reading: bool) -> frozenset[str]:
    allowed = set(_formats()) & (set(Image.OPEN) if reading else set(Image.SAVE))
    return frozenset(end for end, name in Image.registered_extensions().items() if name in allowed)


def _open(source: Source) -> tuple[str, IO[bytes]]:
    """Return a name for messages and an open file."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "the picture", io.BytesIO(source)
    if not isinstance(source, (str, os.PathLike)):
        return str(getattr(source, "name", "the picture")), source
    try:
        return str(source), open(source, "rb")
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        hint = _NOT_FILES.get(str(source).partition("/")[0], "")
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{source} cannot be read: {reason}{hint}") from None


def _check_size(image: Image.Image, name: str, limit: int) -> None:
    """Bound the pixels to decode; a JPEG can be decoded smaller."""
    width, height = image.size
    if width * height > limit and image.format == "JPEG":
        scale = math.sqrt(limit / (width * height))
        image.draft(None, (max(1, int(width * scale / 2)), max(1, int(height * scale / 2))))
    check_pixels(*image.size, name, limit)


def _too_large(name: str, size: str, limit: int) -> PixelLimitError:
    way = ", or set the environment variable PSP_RT_MAX_PIXELS" if limit == MAX_PIXELS else ""
    return PixelLimitError(f"{name} is {size}; expected at most {limit} in all: make it smaller{way}")


def _check_exact(image: Image.Image, name: str) -> None:
    container = LOSSY.get(image.format or "")
    if image.format == "TIFF" and image.info.get("compression") in LOSSY_TIFF:
        container = f"a TIFF file with {image.info['compression']} inside"
    if container is None or (image.format == "WEBP" and _is_lossless_webp(image)):
        return
    raise InputError(
        f"{name} comes from {container}, which changes label ids at every border; save label maps as PNG"
    )


def _is_lossless_webp(image: Image.Image) -> bool:
    """Return whether a WebP holds a VP8L chunk; its file must still be readable."""
    try:
        start = Path(image.filename).read_bytes()[:4096]  # type: ignore[attr-defined]
    except (OSError, AttributeError, ValueError, TypeError):  # opened from memory, or moved away since
        file = getattr(image, "fp", None)
        if file is None:
            return False
        at = file.tell()
        file.seek(0)
        start = file.read(4096)
        file.seek(at)
    return b"VP8L" in start and b"VP8 " not in start


def _hint(file: IO[bytes]) -> str:
    """Return what to do about a file that Pillow does not know."""
    try:
        file.seek(0)
        start = file.read(12)
    except (OSError, ValueError):
        start = b""
    if start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS:
        return "; HEIC needs a decoder: pip install pillow-heif"
    if start.startswith((b"%PDF", b"%!PS", b"\xd7\xcd\xc6\x9a")):
        return "; PDF, EPS and WMF are drawn by other programs: convert it to PNG first"
    return "; expected PNG, JPEG, WebP or another raster format"
