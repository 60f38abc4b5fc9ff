"""Options that several commands of psp-rt share: what to run on, and which styles to mix in."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from ..engine.manifest import MAX_STYLES
from ..errors import InputError, InputWarning
from ..hardware.choose import BACKENDS, PRECISIONS
from ..images import load
from ..preparation import Preparation, prepare
from ..style import Codes, StyleMix, layer_ranges, layer_rows
from ..translator import Translator
from ..truncation import Truncation, strengths

MAX_SEEDS = 1000

Function = TypeVar("Function", bound=Callable[..., Any])


class SeedsCommand(click.Command):
    """Accepts ``--seeds 1 2 3``, although an option of click has one value."""

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


def psi_and_layers(ctx: click.Context, param: click.Parameter, value: str | None) -> Truncation | None:
    """Return the truncation of "0.7" or "0.7:1-8"."""
    if value is None:
        return None
    psi, colon, layers = value.partition(":")
    try:
        strength = float(psi)
        strengths((strength, layers) if colon else strength, MAX_STYLES)
    except ValueError:  # InputError is one too
        expected = "expected 0 to 1, such as 0.7, or with layers, such as 0.7:1-8"
        raise click.BadParameter(f"{value!r}; {expected}", ctx=ctx, param=param) from None
    return (strength, layers) if colon else strength


@contextmanager
def reported_warnings(name: str) -> Iterator[None]:
    """Print the warnings about a picture as lines with its name, each kind once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", InputWarning)
        yield
    lines = []
    for warning in caught:
        if isinstance(warning.message, InputWarning):
            lines.append(f"{name}: {warning.message}")
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    for line in dict.fromkeys(lines):
        click.echo(line, err=True)


@dataclass(frozen=True, kw_only=True)
class StyleOptions:
    """Which styles a command mixes in."""

    style_from: Path | None
    seeds: tuple[int, ...] | None
    layers: str | None
    alpha: float | None

    def check(self) -> None:
        """Raise an error for options that contradict each other, before an engine is opened."""
        if self.style_from is not None and self.seeds is not None:
            raise click.UsageError("--style-from and --seeds are both given; choose one")
        mixes = self.style_from is not None or self.seeds is not None
        if not mixes and (self.layers is not None or self.alpha is not None):
            raise click.UsageError(
                "--layers and --alpha need a style; add --style-from IMAGE or --seeds 1 2 3"
            )
        if self.layers is not None:
            layer_ranges(self.layers)

    def style(self, translator: Translator, preparation: Preparation) -> StyleMix | None:
        """Return the styles; ``preparation`` is that of the picture of --style-from."""
        if self.style_from is None and self.seeds is None:
            return None
        layers, alpha = self.layers_of(translator), 1.0 if self.alpha is None else self.alpha
        layer_rows(layers, translator.manifest.num_styles)  # one error now instead of one for each picture
        if self.style_from is not None:
            code = _encode(translator, self.style_from, preparation)
            return StyleMix(code, layers=layers, alpha=alpha)
        return StyleMix.random(self.seeds or (), layers=layers, alpha=alpha)

    def layers_of(self, translator: Translator) -> str:
        """Return the layers to mix: those asked for, or the engine's."""
        return self.layers or translator.manifest.style_layers

    def report(self, translator: Translator) -> str:
        """Return which layers are mixed; a default may not be what the user expects."""
        count, layers = translator.manifest.num_styles, self.layers_of(translator)
        if self.layers is not None:
            return f"mixes layers {layers} of {count}"
        upto = count if layers.endswith("-") else ""
        return f"mixes layers {layers}{upto} of {count}; --layers chooses others"


def _encode(translator: Translator, path: Path, preparation: Preparation) -> Codes:
    """Return the code of a picture, prepared as the inputs are."""
    picture = load(path)
    try:
        prepared = prepare(picture, preparation, translator.manifest)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    with reported_warnings(path.name):
        codes: Codes = translator.encode(prepared.pictures[0])
    return codes


def style_options(function: Function) -> Function:
    """Add --style-from, --seeds, --layers, --alpha and --truncation."""
    for option in (
        click.option(
            "--truncation",
            callback=psi_and_layers,
            metavar="PSI[:LAYERS]",
            help="Move results towards the average: 1 not at all, 0 wholly; 0.7:1-8 only in layers 1-8.",
        ),
        click.option("--alpha", type=click.FloatRange(0, 1), help="How far to mix. Default: 1"),
        click.option(
            "--layers", metavar="LAYERS", help="Layers to mix, from 1: 8-18. Default: those of the engine."
        ),
        click.option(
            "--seeds",
            callback=seed_list,
            metavar="N...",
            help="Mix random styles in: 1 2 3 gives three results.",
        ),
        click.option(
            "--style-from",
            type=click.Path(path_type=Path),
            metavar="IMAGE",
            help="Mix the style of a picture in.",
        ),
    ):
        function = option(function)
    return function


def hardware_options(function: Function) -> Function:
    """Add --device, --backend, --precision and --threads."""
    for option in (
        click.option(
            "--threads", type=click.IntRange(min=1), help="On the CPU. Default: one for each physical core."
        ),
        click.option(
            "--precision",
            type=click.Choice(PRECISIONS),
            default="auto",
            show_default=True,
            help="auto: fp32, or that of a TensorRT plan. bf16: faster, close; OpenVINO on some processors.",
        ),
        click.option(
            "--backend",
            type=click.Choice(BACKENDS),
            default="auto",
            show_default=True,
            help="auto uses the fastest one that is available.",
        ),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    ):
        function = option(function)
    return function


def check_takes_pictures(translator: Translator, engine: Path) -> None:
    """Raise InputError for an engine without an encoder."""
    if translator.manifest.input is None:
        raise InputError(f"{engine} has no encoder, so it takes no pictures; see psp-rt info {engine}")
