"""``psp-rt run``: translate pictures, or folders of them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import click
from PIL import Image

from .. import faces
from ..errors import InputError
from ..hardware.choose import BackendName, Device, Precision
from ..images import load, over_white
from ..input_checks import check_faces
from ..preparation import FacesOption, Preparation, Prepared, prepare
from ..style import StyleMix
from ..translator import Translator
from ..truncation import Truncation
from .group import INTERRUPTED
from .jobs import MAX_NAMED, Job, name_of_face, plan, save
from .options import (
    SeedsCommand,
    StyleOptions,
    check_takes_pictures,
    hardware_options,
    reported_warnings,
    style_options,
)


@dataclass
class Done:
    """What a run has done so far."""

    written: list[Path] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)  # one for each picture that could not be translated
    taken: frozenset[Path] = frozenset()  # the files of all pictures, written or not


@click.command("run", cls=SeedsCommand)
@click.argument("engine", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="INPUT...")
@click.option("-o", "--output", required=True, metavar="FILE_OR_DIR", help="Where the results go.")
@click.option(
    "--faces",
    "select",
    type=click.Choice(["largest", "all", "off"]),
    help="Which faces to find and align. Default: largest, for engines that expect aligned faces.",
)
@click.option("--paste", is_flag=True, help="Put the results back into the photo.")
@click.option("--no-clean", is_flag=True, help="Sketch engines: use drawings exactly as they are.")
@click.option("--from-photo", is_flag=True, help="Sketch engines: draw photos first.")
@click.option("--recursive", is_flag=True, help="Also read the folders inside of a folder.")
@click.option("--skip-existing", is_flag=True, help="Leave out pictures whose results exist.")
@style_options
@click.option("--couple", is_flag=True, help="Put the input next to each result.")
@hardware_options
def run_command(
    *,
    engine: Path,
    inputs: tuple[Path, ...],
    output: str,
    select: str | None,
    paste: bool,
    no_clean: bool,
    from_photo: bool,
    recursive: bool,
    skip_existing: bool,
    style_from: Path | None,
    seeds: tuple[int, ...] | None,
    layers: str | None,
    alpha: float | None,
    truncation: Truncation | None,
    couple: bool,
    device: Device,
    backend: BackendName,
    precision: Precision,
    threads: int | None,
) -> None:
    """Translate pictures, or folders of them, with ENGINE.

    Engines that expect aligned faces get the largest face of each photo, cut and turned upright. Engines
    for sketches get drawings on clean, evenly white paper.
    """
    styles = StyleOptions(style_from=style_from, seeds=seeds, layers=layers, alpha=alpha)
    styles.check()
    if paste and couple:
        raise click.UsageError("--paste and --couple are both given; choose one")
    found = plan(inputs, output, seeds=seeds or (), recursive=recursive, skip_existing=skip_existing)
    for line in found.left_out:
        click.echo(line, err=True)
    if found.existing:
        click.echo(f"skipped {found.existing} of {found.existing + len(found.jobs)}: results exist", err=True)

    done = Done(taken=frozenset(target for job in found.jobs for target in job.targets))
    with Translator(
        engine,
        device=device,
        backend=backend,
        precision=precision,
        threads=threads,
    ) as translator:
        click.echo(f"{engine} runs on {translator.runs_on}", err=True)
        check_takes_pictures(translator, engine)
        preparation = _preparation(translator, engine, select, paste, no_clean, from_photo)
        style = styles.style(translator, preparation)
        if style is not None:
            click.echo(styles.report(translator), err=True)
        try:
            _run_all(translator, found.jobs, style, truncation, preparation, paste, couple, done)
        except KeyboardInterrupt:
            count = sum(len(job.targets) for job in found.jobs)
            click.echo(f"\ninterrupted; {len(done.written)} of {count} pictures are written", err=True)
            sys.exit(INTERRUPTED)
    _report(done, len(found.jobs))


def _preparation(
    translator: Translator, engine: Path, select: str | None, paste: bool, no_clean: bool, from_photo: bool
) -> Preparation:
    """Return what the engine's manifest and the options ask for."""
    manifest = translator.manifest
    sketch = manifest.task == "sketch"
    if (no_clean or from_photo) and not sketch:
        raise click.UsageError(f"--no-clean and --from-photo are for sketch engines; this is {manifest.task}")
    if paste and sketch:
        raise click.UsageError("--paste is for photos; this engine takes drawings")
    if sketch:
        return Preparation.of(manifest, clean=not no_clean, from_photo=from_photo)
    if manifest.alignment is None and select is None:
        if manifest.input is not None and manifest.input.kind == "rgb":
            click.echo(
                f"{engine} does not say whether it expects aligned faces; if it does, add --faces largest",
                err=True,
            )
        select = "off"
    preparation = Preparation.of(manifest, faces=cast("FacesOption | None", select))
    if paste and preparation.select is None:
        raise click.UsageError("--paste needs faces; add --faces largest or --faces all")
    return preparation


def _run_all(
    translator: Translator,
    jobs: Sequence[Job],
    style: StyleMix | None,
    truncation: Truncation | None,
    preparation: Preparation,
    paste: bool,
    couple: bool,
    done: Done,
) -> None:
    """Do all jobs, and note what was written and what failed."""
    bar_of = click.progressbar(jobs, label="translating", file=sys.stderr)
    with bar_of if len(jobs) > 1 else contextlib.nullcontext(jobs) as bar:
        for job in bar:
            try:
                source = load(job.source)
                prepared = prepare(source, preparation, translator.manifest)
                with reported_warnings(job.source.name):
                    check_faces(prepared.cut_sides, translator.manifest)
                    results = translator.run(prepared.pictures, style=style, truncation=truncation)
            except InputError as error:
                done.failures.append(_reason(job.source, error, preparation))
                continue
            if prepared.report and len(jobs) <= MAX_NAMED:
                click.echo(f"{job.source.name}: {prepared.report}", err=True)
            _write(job, prepared, results, paste, couple, done)


def _reason(source: Path, error: InputError, preparation: Preparation) -> str:
    """Return why a picture failed, with its name and what to try."""
    reason = str(error)
    if reason.startswith("no face was found") and preparation.select is not None:
        reason += "; --faces off translates the whole picture as it is"
    return reason if str(source) in reason else f"{source}: {reason}"


def _write(
    job: Job,
    prepared: Prepared,
    results: list[Image.Image | list[Image.Image]],
    paste: bool,
    couple: bool,
    done: Done,
) -> None:
    """Write the results of one picture: for each style one file, or one for each face."""
    by_face = [result if isinstance(result, list) else [result] for result in results]
    for number, target in enumerate(job.targets):
        of_style = [of_face[number] for of_face in by_face]
        if prepared.photo is not None and paste:
            named = [(faces.paste_all(prepared.photo, prepared.faces, of_style), target)]
        else:
            named = [
                (
                    _couple(picture, result) if couple else result,
                    name_of_face(target, index, len(of_style), done.taken),
                )
                for index, (picture, result) in enumerate(zip(prepared.pictures, of_style, strict=True), 1)
            ]
        for picture, path in named:
            save(picture, path)
            done.written.append(path)


def _couple(source: Image.Image, result: Image.Image) -> Image.Image:
    """Return the input and the result on its right, the smaller one scaled to the height of the other."""
    height = max(source.height, result.height)
    shown = [_scaled(over_white(image).convert("RGB"), height) for image in (source, result)]
    both = Image.new("RGB", (sum(image.width for image in shown), height))
    both.paste(shown[0], (0, 0))
    both.paste(shown[1], (shown[0].width, 0))
    return both


def _scaled(image: Image.Image, height: int) -> Image.Image:
    return image.resize(
        (max(1, round(image.width * height / image.height)), height), Image.Resampling.BICUBIC
    )


def _report(done: Done, count: int) -> None:
    """Print what was written; exit with status 1 if a picture failed."""
    if len(done.written) > MAX_NAMED:
        click.echo(f"wrote {len(done.written)} pictures to {done.written[0].parent}")
    else:
        for target in done.written:
            click.echo(f"wrote {target}")
    if done.failures:
        click.echo(f"{len(done.failures)} of {count} pictures failed:", err=True)
        for reason in done.failures:
            click.echo(f"  {reason}", err=True)
        sys.exit(1)
