"""Which files a command reads and writes, decided before any work is done.

one picture, --output FILE          FILE
several pictures, or a folder       FOLDER/<stem>.png
the same stem twice                 FOLDER/<name>.png, or FOLDER/<parent>/<stem>.png
a folder, --recursive               FOLDER/<subfolder>/<stem>.png
with several seeds                  <stem>-seed1.png, <stem>-seed2.png, ...
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..errors import InputError, OutputError
from ..files import replacing
from ..images import is_picture_file, readable_suffixes, writable_suffixes

NAMED = 5  # files left out that are named one by one
MAX_NAMED = 20  # and files written


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture to read, and the files that its results go to."""

    source: Path
    targets: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The jobs of a command, and what it leaves alone."""

    jobs: tuple[Job, ...]
    left_out: tuple[str, ...] = ()  # a line for each folder that holds other files
    existing: int = 0  # jobs whose results all exist


@dataclass(frozen=True, kw_only=True)
class _Picture:
    source: Path
    folder: Path = Path()  # below the output folder


def plan(
    inputs: Sequence[Path],
    output: str,
    *,
    seeds: Sequence[int] = (),
    recursive: bool = False,
    skip_existing: bool = False,
) -> Plan:
    """Return what to do for files and folders.

    Raises:
        InputError: A folder holds no pictures.
        OutputError: A result would replace an input, or the output's format is unknown.
    """
    left_out: list[str] = []
    pictures = [picture for given in inputs for picture in _pictures(given, recursive, left_out)]
    pictures = list({picture.source.resolve(): picture for picture in pictures}.values())
    as_folder = len(pictures) > 1 or any(given.is_dir() for given in inputs) or _names_folder(output)
    if as_folder and not _names_folder(output):
        raise OutputError(
            f"{output} names one file, but there is more than one picture; give a folder, such as "
            f"{Path(output).stem}/"
        )
    if not as_folder and Path(output).suffix.lower() not in writable_suffixes():
        known = ", ".join(sorted({".png", ".jpg", ".webp", ".tif", ".bmp"} & writable_suffixes()))
        raise OutputError(f"{output} does not end like a picture format; expected {known} or another")

    names = _names(pictures) if as_folder else [Path()]
    targets = [Path(output) / name for name in names] if as_folder else [Path(output)]
    jobs = [
        Job(source=picture.source, targets=_per_seed(target, seeds, as_folder))
        for picture, target in zip(pictures, targets, strict=True)
    ]
    _check_apart(jobs)
    todo = tuple(job for job in jobs if not (skip_existing and all(path.exists() for path in job.targets)))
    return Plan(jobs=todo, left_out=tuple(left_out), existing=len(jobs) - len(todo))


def name_of_face(target: Path, number: int, count: int, taken: AbstractSet[Path]) -> Path:
    """Return the file of one face's result: the photo's if it is the only one, else NAME-face1, NAME-face2.

    Args:
        target: The photo's file.
        number: Of the face, from 1.
        count: How many faces the photo has.
        taken: The files of all photos: one of them may be called NAME-face1 itself.
    """
    if count == 1:
        return target
    path = target.with_name(f"{target.stem}-face{number}{target.suffix}")
    while path in taken:
        path = path.with_name(f"{path.stem}_{path.suffix}")
    return path


def save(image: Image.Image, path: Path) -> None:
    """Write a picture whole or not at all, in the format of its ending.

    Raises:
        OutputError: It cannot be written, or the format cannot hold it.
    """
    data = io.BytesIO()
    try:
        image.save(data, format=Image.registered_extensions()[path.suffix.lower()])
    except (OSError, ValueError) as error:  # too many pixels for the format, an encoder that is missing
        raise OutputError(f"{path} cannot be written: {error}; use another ending, such as .png") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    with replacing(path) as temporary:
        temporary.write_bytes(data.getvalue())


def _pictures(given: Path, recursive: bool, left_out: list[str]) -> list[_Picture]:
    """Return a file, or the pictures of a folder in the order of their names; hidden files do not count."""
    if not given.is_dir():
        return [_Picture(source=given)]
    entries = sorted(given.rglob("*") if recursive else given.iterdir())
    entries = [
        entry for entry in entries if not any(part.startswith(".") for part in entry.relative_to(given).parts)
    ]
    files = [entry for entry in entries if entry.is_file()]
    pictures = [file for file in files if is_picture_file(file)]
    others = [file for file in files if not is_picture_file(file)]
    folders = [] if recursive else [entry for entry in entries if entry.is_dir()]
    if others:
        shown = ", ".join(file.name for file in others[:NAMED]) + (", ..." if len(others) > NAMED else "")
        left_out.append(f"{given}: left out {_count(others, 'file')} that are not pictures: {shown}")
    if folders:
        left_out.append(f"{given}: left out {_count(folders, 'folder')}; --recursive reads them too")
    if not pictures:
        hint = "; --recursive looks into its folders" if folders else ""
        known = ", ".join(sorted({".png", ".jpg", ".webp", ".tif", ".bmp", ".avif"} & readable_suffixes()))
        raise InputError(f"the folder {given} holds no pictures ({known}, ...){hint}")
    return [_Picture(source=file, folder=file.relative_to(given).parent) for file in pictures]


def _names(pictures: Sequence[_Picture]) -> list[Path]:
    """Return a name for each result, as short as differs from all others."""
    forms: tuple[Callable[[_Picture], Path], ...] = (
        lambda picture: picture.folder / f"{picture.source.stem}.png",
        lambda picture: picture.folder / f"{picture.source.name}.png",
        lambda picture: picture.folder / picture.source.resolve().parent.name / f"{picture.source.stem}.png",
        lambda picture: picture.folder / picture.source.resolve().parent.name / f"{picture.source.name}.png",
    )
    names = [forms[0](picture) for picture in pictures]
    for form in forms[1:]:
        counts = Counter(names)
        names = [
            form(picture) if counts[name] > 1 else name for picture, name in zip(pictures, names, strict=True)
        ]
    for name, count in Counter(names).items():
        if count > 1:
            twins = [str(p.source) for p, own in zip(pictures, names, strict=True) if own == name]
            raise OutputError(f"{' and '.join(twins)} would be written to the same {name}; run them apart")
    return names


def _per_seed(target: Path, seeds: Sequence[int], as_folder: bool) -> tuple[Path, ...]:
    if not seeds or (len(seeds) == 1 and not as_folder):
        return (target,)
    return tuple(target.with_name(f"{target.stem}-seed{seed}{target.suffix}") for seed in seeds)


def _names_folder(output: str) -> bool:
    return Path(output).is_dir() or output.endswith(("/", os.sep)) or not Path(output).suffix


def _check_apart(jobs: Sequence[Job]) -> None:
    sources = {job.source.resolve() for job in jobs}
    for job in jobs:
        for target in job.targets:
            if target.resolve() in sources:
                raise OutputError(f"{target} is an input and would be overwritten; choose another --output")


def _count(found: Sequence[object], what: str) -> str:
    return f"{len(found)} {what}{'s' * (len(found) != 1)}"
