"""``psp-rt faces``: find faces, and cut them as FFHQ's are; also to prepare training data."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import click
from PIL import Image

from .. import faces
from ..errors import InputError
from ..files import check_writable, write_atomically
from .jobs import MAX_NAMED, Job, name_of_face, plan, save


@click.command("faces")
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PHOTO...")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Write aligned crops there."
)
@click.option("--size", type=click.IntRange(16, 4096), default=256, show_default=True, help="Side of a crop.")
@click.option("--json", "json_file", metavar="FILE", help="Write a JSON line for each photo; - for stdout.")
@click.option("--largest", is_flag=True, help="Only the largest face of each photo.")
@click.option("--recursive", is_flag=True, help="Also read the folders inside of a folder.")
def faces_command(
    *,
    photos: tuple[Path, ...],
    output: Path | None,
    size: int,
    json_file: str | None,
    largest: bool,
    recursive: bool,
) -> None:
    """Find the faces in PHOTOs, or folders of them.

    Without --json and --output, a line for each photo says what was found.
    """
    found = plan(photos, f"{output or 'crops'}/", recursive=recursive)
    for line in found.left_out:
        click.echo(line, err=True)
    if json_file not in (None, "-"):
        check_writable(str(json_file))

    taken = {target for job in found.jobs for target in job.targets}
    lines: list[str] = []
    written: list[Path] = []
    failures: list[str] = []
    bar_of = click.progressbar(found.jobs, label="finding faces", file=sys.stderr)
    with bar_of if len(found.jobs) > 1 else contextlib.nullcontext(found.jobs) as bar:
        for job in bar:
            try:
                upright = faces.upright_rgb(job.source)
            except InputError as error:
                failures.append(str(error))
                continue
            seen = faces.find(upright)[: 1 if largest else None]
            lines.append(json.dumps({"photo": str(job.source), "faces": [_as_json(face) for face in seen]}))
            if json_file == "-":
                click.echo(lines[-1])
            elif json_file is None and output is None:
                click.echo(f"{job.source}: {_in_words(seen)}")
            if output is not None:
                written += _write_crops(job, upright, seen, size, taken)

    if json_file not in (None, "-"):
        write_atomically(str(json_file), "".join(f"{line}\n" for line in lines))
    if output is not None:
        click.echo(_written(written, output), err=json_file == "-")
    if failures:
        click.echo(f"{len(failures)} of {len(found.jobs)} photos failed:", err=True)
        for reason in failures:
            click.echo(f"  {reason}", err=True)
        sys.exit(1)


def _as_json(face: faces.Face) -> dict[str, Any]:
    """Return what the JSON line says about a face; the quad's corners in the order of `Face.quad`."""
    return {
        "quad": face.quad.round(2).tolist(),
        "score": round(face.score, 4),
        "turn": round(face.turn, 2),
    }


def _in_words(seen: list[faces.Face]) -> str:
    if not seen:
        return "no face"
    parts = [f"{face.side:.0f}x{face.side:.0f}, turned {face.turn:.0f} degrees" for face in seen]
    return f"{len(seen)} face{'s' * (len(seen) > 1)}: " + "; ".join(parts)


def _write_crops(
    job: Job, upright: Image.Image, seen: list[faces.Face], size: int, taken: AbstractSet[Path]
) -> list[Path]:
    """Write the aligned crops of a photo, and return their files."""
    if not seen:
        click.echo(f"{job.source}: no face, so no crop", err=True)
    paths = [name_of_face(job.targets[0], number, len(seen), taken) for number in range(1, len(seen) + 1)]
    for face, path in zip(seen, paths, strict=True):
        save(faces.crop(upright, face, size), path)
    return paths


def _written(written: list[Path], folder: Path) -> str:
    """Name the crops, or count them if they are many."""
    if len(written) > MAX_NAMED or not written:
        return f"wrote {len(written)} crops to {folder}"
    return "\n".join(f"wrote {path}" for path in written)
