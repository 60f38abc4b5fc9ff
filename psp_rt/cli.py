"""The ``psp-rt`` command."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from PIL import Image

from . import __version__
from .build_command import build_command
from .choice import BACKENDS, PRECISIONS
from .description import described
from .doctor import report
from .engine_file import EngineFile
from .errors import InputError, PspError
from .images import load, over_white
from .output_files import Job, plan, save
from .style import StyleMix, layer_rows
from .translator import Translator

MAX_SEEDS = 1000
MAX_NAMED = 20  # written files that are named one by one


class Commands(click.Group):
    """Shows our own errors as messages; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except PspError as error:
            raise click.ClickException(str(error)) from error


class SeveralSeeds(click.Command):
    """Takes ``--seeds 1 2 3``, where click's options have one value."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Join the values that follow --seeds into one."""
        joined: list[str] = []
        for arg in args:
            follows_seeds = len(joined) > 1 and joined[-2] == "--seeds"
            if follows_seeds and re.fullmatch(r"\d[\d,-]*", arg) and re.fullmatch(r"\d[\d,-]*", joined[-1]):
                joined[-1] += f",{arg}"
            else:
                joined.append(arg)
        return super().parse_args(ctx, joined)


def seed_list(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Return the seeds of "1,2,7-9"."""
    if value is None:
        return None
    seeds: list[int] = []
    for part in value.split(","):
        match = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last - first + len(seeds) >= MAX_SEEDS:
            expected = f"expected at most {MAX_SEEDS} numbers, such as 1 2 3 or 1-3"
            raise click.BadParameter(f"{value!r}; {expected}", ctx=ctx, param=param)
        seeds += range(first, last + 1)
    return tuple(dict.fromkeys(seeds))


@click.group(cls=Commands)
@click.version_option(__version__)
def main() -> None:
    """Run image-translation models from one engine file."""


@main.command(cls=SeveralSeeds)
@click.argument("engine", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="INPUT...")
@click.option("-o", "--output", required=True, metavar="FILE_OR_DIR", help="Where the results go.")
@click.option("--style-from", type=click.Path(path_type=Path), metavar="IMAGE", help="Mix its style in.")
@click.option("--seeds", callback=seed_list, metavar="N...", help="Mix random styles in: 1 2 3 gives three.")
@click.option("--layers", metavar="LAYERS", help="Layers to mix, counted from 1: 8-18. Default: 8-")
@click.option("--alpha", type=click.FloatRange(0, 1), help="How far to mix. Default: 1")
@click.option("--couple", is_flag=True, help="Put the input beside each result.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="auto",
    show_default=True,
    help="auto takes the fastest one that can be used.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="auto",
    show_default=True,
    help="auto: fp32, or what a TensorRT plan has. bf16: faster, close; OpenVINO on some processors.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="On the CPU. Default: one for each physical core."
)
def run(
    *,
    engine: Path,
    inputs: tuple[Path, ...],
    output: str,
    style_from: Path | None,
    seeds: tuple[int, ...] | None,
    layers: str | None,
    alpha: float | None,
    couple: bool,
    device: str,
    backend: str,
    precision: str,
    threads: int | None,
) -> None:
    """Translate pictures, or folders of them, with ENGINE."""
    _check_style_options(style_from, seeds, layers, alpha)
    jobs = plan(inputs, output, seeds or ())
    with Translator(
        engine, device=device, backend=backend, precision=precision, threads=threads
    ) as translator:
        click.echo(f"{engine} runs on {translator.runs_on}", err=True)
        if translator.manifest.input is None:
            raise InputError(f"{engine} has no encoder, so it takes no pictures; see psp-rt info {engine}")
        style = _style(translator, style_from, seeds, layers or "8-", 1.0 if alpha is None else alpha)
        failures = _run_all(translator, jobs, style, couple)
    _tell_written([target for job in jobs if job.source not in failures for target in job.targets])
    if failures:
        click.echo(f"{len(failures)} of {len(jobs)} pictures failed:", err=True)
        for reason in failures.values():
            click.echo(f"  {reason}", err=True)
        sys.exit(1)


@main.command()
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def info(engine: Path, as_json: bool) -> None:
    """Say what ENGINE holds and where it runs, without loading it."""
    with EngineFile.open(engine, needs_graphs=False) as file:
        click.echo(file.manifest.to_json().rstrip() if as_json else "\n".join(described(file)))


@main.command()
@click.argument("engine", required=False, type=click.Path(path_type=Path))
def doctor(engine: Path | None) -> None:
    """Say what this machine has, and what would run here; with ENGINE, try it."""
    for line in report(engine):
        click.echo(line)


main.add_command(build_command)


def _check_style_options(
    style_from: Path | None, seeds: tuple[int, ...] | None, layers: str | None, alpha: float | None
) -> None:
    if style_from is not None and seeds is not None:
        raise click.UsageError("--style-from and --seeds are both given; choose one")
    if style_from is None and seeds is None and (layers is not None or alpha is not None):
        raise click.UsageError("--layers and --alpha need a style; add --style-from IMAGE or --seeds 1 2 3")


def _style(
    translator: Translator, style_from: Path | None, seeds: tuple[int, ...] | None, layers: str, alpha: float
) -> StyleMix | None:
    if style_from is not None or seeds is not None:
        layer_rows(layers, translator.manifest.num_styles)  # refused once, not for each picture
    if style_from is not None:
        return StyleMix(translator.encode(style_from), layers=layers, alpha=alpha)
    return None if seeds is None else StyleMix.random(seeds, layers=layers, alpha=alpha)


def _run_all(
    translator: Translator, jobs: Sequence[Job], style: StyleMix | None, couple: bool
) -> dict[Path, str]:
    """Do all jobs, and return the sources that could not be read, each with its reason."""
    failures = {}
    bar_of = click.progressbar(jobs, label="translating", file=sys.stderr)
    with bar_of if len(jobs) > 1 else contextlib.nullcontext(jobs) as bar:
        for job in bar:
            try:
                source = load(job.source)
                results = translator.run(source, style=style)
            except InputError as error:
                reason = str(error)
                failures[job.source] = reason if str(job.source) in reason else f"{job.source}: {reason}"
                continue
            results = results if isinstance(results, list) else [results]
            for result, target in zip(results, job.targets, strict=True):
                save(_beside(source, result) if couple else result, target)
    return failures


def _beside(source: Image.Image, result: Image.Image) -> Image.Image:
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


def _tell_written(targets: Sequence[Path]) -> None:
    if len(targets) > MAX_NAMED:
        click.echo(f"wrote {len(targets)} pictures to {targets[0].parent}")
        return
    for target in targets:
        click.echo(f"wrote {target}")
