"""Measure which codes are usual for a model, so that the runtime can warn of unusual pictures.

The measure is `psp_rt.engine.statistics`: how many spreads a code lies from the codes of pictures such as
the encoder was trained on. Nothing else can say what is usual, so without such pictures there is no limit,
and no warning. It finds pictures that throw an encoder off, such as noise; it does not find every picture of
something else, because an encoder maps most of them to ordinary codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from export.pictures import files_of
from psp_rt import InputError, Manifest, Translator
from psp_rt.drawings import from_photo
from psp_rt.engine import CODES, STYLES, Statistics
from psp_rt.faces import upright_rgb

SEEDS = 10_000
SEEDS_AT_ONCE = 500
QUANTILE = 0.999
FEWEST = 100  # pictures for a limit
FACTORS = (4, 8)  # how much smaller photos become as inputs of super-resolution


@dataclass(frozen=True, kw_only=True)
class Usual:
    """Which codes are usual.

    Args:
        codes: Mean and spread of the pictures' codes.
        limit: Above it lies one picture in a thousand; with fewer pictures, it lies close to their largest
            distance.
        median: The distance of the picture in the middle.
        pictures: How many were measured.
    """

    codes: Statistics
    limit: float
    median: float
    pictures: int

    def provenance(self) -> dict[str, str]:
        """Return where the limit comes from, for the manifest."""
        return {
            "strange_above": f"{QUANTILE:.1%} of {self.pictures} pictures, whose median is {self.median:.2f}"
        }


def measure_styles(engine: Path) -> Statistics:
    """Return mean and spread of the styles of fixed seeds."""
    starts = range(0, SEEDS, SEEDS_AT_ONCE)
    with Translator(engine, device="cpu", backend="onnxruntime") as translator:
        parts = [translator.sample(range(first, first + SEEDS_AT_ONCE))[:, 0] for first in starts]
    return Statistics.of(np.concatenate(parts))


def measure_pictures(engine: Path, paths: Sequence[Path], *, from_photos: bool = False) -> Usual:
    """Measure the codes of usual pictures.

    Each half of the pictures is measured against the mean and spread of the other half, as new pictures are.

    Args:
        engine: The engine.
        paths: Files, or folders of pictures, such as the encoder was trained on.
        from_photos: They are aligned photos: a sketch engine gets them as drawings, one for super-resolution
            gets them smaller.

    Raises:
        InputError: The engine has no encoder, or the pictures are too few.
    """
    files = [file for path in paths for file in files_of(path)]
    if len(files) < FEWEST:
        raise InputError(f"{len(files)} pictures are too few to say what is usual; expected {FEWEST} or more")
    with Translator(engine, device="cpu", backend="onnxruntime") as translator:
        codes = np.stack(
            [
                translator.encode(_input(file, number, translator.manifest, from_photos))
                for number, file in enumerate(files)
            ]
        )
    halves = codes[::2], codes[1::2]
    distances = np.concatenate([Statistics.of(known).distance(new) for known, new in (halves, halves[::-1])])
    return Usual(
        codes=Statistics.of(codes),
        limit=float(np.quantile(distances, QUANTILE)),
        median=float(np.median(distances)),
        pictures=len(files),
    )


def measure(engine: Path, paths: Sequence[Path]) -> tuple[dict[str, bytes], Usual | None]:
    """Return the members that hold statistics, and what is usual unless the pictures are too few to tell."""
    members = {STYLES: measure_styles(engine).to_bytes()}
    files = [file for path in paths for file in files_of(path)]
    if len(files) < FEWEST:
        return members, None
    usual = measure_pictures(engine, files)
    return members | {CODES: usual.codes.to_bytes()}, usual


def _input(file: Path, number: int, manifest: Manifest, from_photos: bool) -> Path | Image.Image:
    if from_photos and manifest.task == "sketch":
        return from_photo(file).picture
    if from_photos and manifest.task == "super-resolution" and manifest.input is not None:
        side = max(1, manifest.input.width // FACTORS[number % len(FACTORS)])
        return upright_rgb(file).resize((side, side), Image.Resampling.BICUBIC)
    return file
