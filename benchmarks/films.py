"""Films for benchmarks, made of a picture of the project: a portrait that stays, or two that cross."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from benchmarks import ROOT

PORTRAIT = ROOT / "models" / "astronaut.jpg"
HEAD = (101, 0, 341, 240)  # in it
SIDE = 200  # pixels of a portrait in the film

Frame = npt.NDArray[np.uint8]  # [H, W, 3], RGB


def portraits(count: int, *, width: int = 640, height: int = 360, people: int = 1) -> Iterator[Frame]:
    """Yield frames in which portraits move to and fro over a colored wall, and cross."""
    portrait, mask = _portrait()
    wall = _wall(width, height)
    for number in range(count):
        picture = wall.copy()
        for person in range(people):
            phase = number / 40 + np.pi * (person + 0.5)
            x = (width - SIDE) / 2 * (1 + 0.8 * np.sin(phase))
            y = (height - SIDE) / 2 * (1 + 0.3 * np.cos(1.7 * phase))
            picture.paste(portrait, (round(x), round(y)), mask)
        yield np.asarray(picture)


def still(count: int, *, noise: float, width: int = 640, height: int = 360) -> Iterator[Frame]:
    """Yield frames of a portrait that does not move, each with its own noise of a standard deviation."""
    rng = np.random.default_rng(0)
    portrait, mask = _portrait()
    picture = _wall(width, height)
    picture.paste(portrait, ((width - SIDE) // 2, (height - SIDE) // 2), mask)
    clean = np.asarray(picture).astype(np.float32)
    for _ in range(count):
        noisy = clean + rng.normal(0, noise, clean.shape).astype(np.float32)
        yield np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def write(path: Path, frames: Iterator[Frame], *, rate: int = 25, lossless: bool = False) -> Path:
    """Write frames as a film of H.264, without sound."""
    options = {"preset": "ultrafast", "crf": "0" if lossless else "16"}
    container = av.open(str(path), "w")
    stream: Any = container.add_stream("libx264", rate=rate, options=options)
    stream.pix_fmt = "yuv444p" if lossless else "yuv420p"
    for number, picture in enumerate(frames):
        if number == 0:
            stream.height, stream.width = picture.shape[:2]
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
    container.close()
    return path


def _portrait() -> tuple[Image.Image, Image.Image]:
    """Return the portrait and its soft round mask."""
    with Image.open(PORTRAIT) as opened:
        head = opened.convert("RGB").crop(HEAD)
    portrait = head.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    mask = Image.new("L", (SIDE, SIDE), 0)
    ImageDraw.Draw(mask).ellipse((4, 4, SIDE - 4, SIDE - 4), fill=255)
    return portrait, mask.filter(ImageFilter.GaussianBlur(2))


def _wall(width: int, height: int) -> Image.Image:
    colors = np.random.default_rng(1).integers(60, 200, (9, 16, 3), dtype=np.uint8)
    return Image.fromarray(colors).resize((width, height), Image.Resampling.BICUBIC)
