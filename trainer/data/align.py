"""Align a folder of photos once, as FFHQ's are, before training: ``--align``.

The largest face of each photo is cut into a folder beside the run folder. Photos without a face are left
out by name.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from psp_rt import faces
from psp_rt.errors import InputError
from psp_rt.files import write_atomically
from trainer.data.photos import SUFFIXES

SIDE = 512  # pixels: enough for every input and target; scaled down when read
QUALITY = 95  # of the JPEGs
DONE = "aligned.json"  # written last: what was aligned, and what was left out
PATIENCE = 0.5  # seconds between looks of processes that wait for the first one


def align_photos(folder: Path, cache: Path) -> tuple[Path, dict[str, str]]:
    """Return a folder with the aligned faces of a folder's photos, and why photos were left out, by name.

    A folder that was aligned before, with the same files, is used again. Of several processes the first one
    works, and the others wait.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    listing = [[path.name, path.stat().st_size] for path in paths]
    while (known := _known(cache / DONE)) is None or known["photos"] != listing:
        if int(os.environ.get("RANK", "0")) == 0:  # torchrun's
            _align(paths, listing, cache)
        else:
            time.sleep(PATIENCE)
    return cache, dict(known["left_out"])


def _align(paths: list[Path], listing: list[list[Any]], cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    for old in cache.iterdir():  # of other photos
        old.unlink()
    left_out = {}
    for path in paths:
        try:
            (found, *_), _ = faces.align_faces(faces.upright_rgb(path), size=SIDE)
        except InputError as error:
            left_out[path.name] = str(error).removeprefix(f"{path} ")
            continue
        found.picture.save(cache / f"{path.stem}{path.suffix.lower().replace('.', '-')}.jpg", quality=QUALITY)
    write_atomically(cache / DONE, json.dumps({"photos": listing, "left_out": left_out}, indent=1) + "\n")


def _known(file: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return found
