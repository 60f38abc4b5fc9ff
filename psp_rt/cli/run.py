"""``psp-rt run``: translate pictures, or folders of them."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
from PIL import Image

from ..errors import InputError
from ..hardware.choose import BACKENDS, PRECISIONS
from ..images import load, over_white
from ..style import DEFAULT_LAYERS, StyleMix, layer_ranges, layer_rows
from ..translator import Translator
from .missing import INTERRUPTED
from .output_files import Job, plan, save

MAX_SEEDS = 1000
MAX_NAMED = 20  # written files that are named one by one


@dataclass
class Done:
    """What a run has done so far."""

    written: list[Path] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)  # one for each picture that could not be read


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


@click.command("run", cls=SeveralSeeds)
@click.argument("engine", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="INPUT...")
@click.option("-o", "--output", required=True, metavar="FILE_OR_DIR", help="Where the results go.")
@click.option("--style-from", type=click.Path(path_type=Path), metavar="IMAGE", help="Mix its style in.")
@click.option("--seeds", callback=seed_list, metavar="N...", help="Mix random styles in: 1 2 3 gives three.")
@click.option("--layers", metavar="LAYERS", help="Layers to mix, from 1: 8-18. Default: 8-, the paper's.")
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
def run_command(
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
    done = Done()
    jobs = plan(inputs, output, seeds or ())
    with Translator(
        engine, device=device, backend=backend, precision=precision, threads=threads
    ) as translator:
        click.echo(f"{engine} runs on {translator.runs_on}", err=True)
        if translator.manifest.input is None:
            raise InputError(f"{engine} has no encoder, so it takes no pictures; see psp-rt info {engine}")
        style = _style(translator, style_from, seeds, layers or DEFAULT_LAYERS, alpha)
        if style is not None:
            click.echo(_mixed(translator, layers), err=True)
        try:
            _run_all(translator, jobs, style, couple, done)
        except KeyboardInterrupt:
            count = sum(len(job.targets) for job in jobs)
            click.echo(f"\ninterrupted; {len(done.written)} of {count} pictures are written", err=True)
            sys.exit(INTERRUPTED)
    _tell_written(done.written)
    if done.failures:
        click.echo(f"{len(done.failures)} of {len(jobs)} pictures failed:", err=True)
        for reason in done.failures:
            click.echo(f"  {reason}", err=True)
        sys.exit(1)


def _check_style_options(
    style_from: Path | None, seeds: tuple[int, ...] | None, layers: str | None, alpha: float | None
) -> None:
    if style_from is not None and seeds is not None:
        raise click.UsageError("--style-from and --seeds are both given; choose one")
    if style_from is None and seeds is None and (layers is not None or alpha is not None):
        raise click.UsageError("--layers and --alpha need a style; add --style-from IMAGE or --seeds 1 2 3")
    if layers is not None:
        layer_ranges(layers)  # before an engine is opened for nothing


def _style(
    translator: Translator,
    style_from: Path | None,
    seeds: tuple[int, ...] | None,
    layers: str,
    alpha: float | None,
) -> StyleMix | None:
    alpha = 1.0 if alpha is None else alpha
    if style_from is not None or seeds is not None:
        layer_rows(layers, translator.manifest.num_styles)  # refused once, not for each picture
    if style_from is not None:
        return StyleMix(translator.encode(style_from), layers=layers, alpha=alpha)
    return None if seeds is None else StyleMix.random(seeds, layers=layers, alpha=alpha)


def _mixed(translator: Translator, layers: str | None) -> str:
    """Say which layers are mixed; the default leaves few to a small model."""
    count = translator.manifest.num_styles
    if layers is None:
        return f"mixes layers {DEFAULT_LAYERS}{count} of {count}; --layers chooses others"
    return f"mixes layers {layers} of {count}"


def _run_all(
    translator: Translator, jobs: Sequence[Job], style: StyleMix | None, couple: bool, done: Done
) -> None:
    """Do all jobs, and note what was written and what could not be read."""
    bar_of = click.progressbar(jobs, label="translating", file=sys.stderr)
    with bar_of if len(jobs) > 1 else contextlib.nullcontext(jobs) as bar:
        for job in bar:
            try:
                source = load(job.source)
                results = translator.run(source, style=style)
            except InputError as error:
                reason = str(error)
                done.failures.append(reason if str(job.source) in reason else f"{job.source}: {reason}")
                continue
            results = results if isinstance(results, list) else [results]
            for result, target in zip(results, job.targets, strict=True):
                save(_beside(source, result) if couple else result, target)
                done.written.append(target)


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
