"""Which files a run reads and writes, settled before any work is done.

one picture, --output FILE          FILE
several pictures, or a folder       FOLDER/<stem>.png
with several seeds                  <stem>-seed1.png, <stem>-seed2.png, ...
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..errors import InputError, OutputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture to read, and the files that its results go to."""

    source: Path
    targets: tuple[Path, ...]


def plan(inputs: Sequence[Path], output: str, seeds: Sequence[int]) -> list[Job]:
    """Return what to do for files and folders.

    Raises:
        InputError: A folder holds no pictures.
        OutputError: Two results would have the same name, or a result would replace an input.
    """
    sources = [source for given in inputs for source in _pictures(given)]
    as_folder = len(sources) > 1 or any(given.is_dir() for given in inputs) or _names_folder(output)
    if as_folder and not _names_folder(output):
        raise OutputError(
            f"{output} names one file, but there is more than one picture; give a folder, such as "
            f"{Path(output).stem}/"
        )
    if not as_folder and Path(output).suffix.lower() not in SUFFIXES:
        raise OutputError(f"{output} has no picture format's ending; expected one of {', '.join(SUFFIXES)}")
    jobs = [_job(source, Path(output), as_folder, seeds) for source in sources]
    _check_targets(jobs)
    return jobs


def save(image: Image.Image, path: Path) -> None:
    """Write a picture whole or not at all."""
    data = io.BytesIO()
    image.save(data, format=Image.registered_extensions()[path.suffix.lower()])
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data.getvalue())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


def _pictures(given: Path) -> list[Path]:
    if not given.is_dir():
        return [given]
    visible = [file for file in sorted(given.iterdir()) if not file.name.startswith(".")]
    found = [file for file in visible if file.suffix.lower() in SUFFIXES]
    if not found:
        raise InputError(f"the folder {given} holds no pictures ({', '.join(SUFFIXES)})")
    return found


def _names_folder(output: str) -> bool:
    return Path(output).is_dir() or output.endswith(("/", os.sep)) or not Path(output).suffix


def _job(source: Path, output: Path, as_folder: bool, seeds: Sequence[int]) -> Job:
    target = output / f"{source.stem}.png" if as_folder else output
    if not seeds or (len(seeds) == 1 and not as_folder):
        return Job(source=source, targets=(target,))
    named = tuple(target.with_name(f"{target.stem}-seed{seed}{target.suffix}") for seed in seeds)
    return Job(source=source, targets=named)


def _check_targets(jobs: Sequence[Job]) -> None:
    sources = {job.source.resolve() for job in jobs}
    taken: dict[Path, Path] = {}
    for job in jobs:
        for target in job.targets:
            if target.resolve() in sources:
                raise OutputError(f"{target} is an input, and would be overwritten; choose another --output")
            if target in taken:
                raise OutputError(
                    f"{taken[target]} and {job.source} would both be written to {target}; "
                    "rename one, or run them apart"
                )
            taken[target] = job.source
