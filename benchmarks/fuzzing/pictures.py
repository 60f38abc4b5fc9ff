"""Pictures: small files of every format that Pillow writes, damaged, and read as users' pictures are."""

from __future__ import annotations

import random
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.fuzzing.damage import damaged
from psp_rt.images import load

FORMATS = (
    *("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "TGA", "ICO", "AVIF", "JPEG2000", "QOI", "PCX"),
    *("SGI", "DDS", "ICNS", "MSP", "XBM", "IM", "SPIDER", "DIB"),
)
MODES = ("RGB", "L", "RGBA", "P", "1", "I;16")


class Pictures:
    """Decodes picture files."""

    name = "pictures"

    def make(self, number: int, folder: Path) -> bytes:
        """Return the file of a number."""
        rng = random.Random(number)
        return damaged(rng.choice(_files()), rng)

    def use(self, made: Any) -> None:
        """Decode a file."""
        load(made)


@cache
def _files() -> list[bytes]:
    """Return a good file of each format and mode that go together."""
    rng, found = np.random.default_rng(0), []
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    for kind in FORMATS:
        for mode in MODES:
            picture = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).convert("RGB")
            buffer = BytesIO()
            try:
                made = picture.convert("I").convert(mode) if mode == "I;16" else picture.convert(mode)
                made.save(buffer, kind, **({"exif": exif} if kind in {"PNG", "JPEG", "WEBP"} else {}))
            except (OSError, ValueError, KeyError):
                continue  # this format has no such mode, or this Pillow does not write it
            found.append(buffer.getvalue())
    return found
