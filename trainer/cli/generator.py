"""The command ``python -m trainer generator``."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click
from torch import nn

from psp_rt.errors import InputError
from trainer.data.real_photos import RealPhotos
from trainer.generator import profile
from trainer.generator import training as loop
from trainer.generator.config import GanConfig, default_channels
from trainer.generator.run import Run
from trainer.generator.step import Forward
from trainer.loop import distributed as team
from trainer.loop.precision import shortfall
from trainer.loop.report import left_out, progress_line
from trainer.networks import Generator, GeneratorConfig
from trainer.networks.discriminator import Discriminator, DiscriminatorConfig

F = TypeVar("F", bound=Callable[..., Any])
Folder = click.Path(exists=True, file_okay=False, path_type=Path)
Positive = click.IntRange(min=1)
NotNegative = click.FloatRange(min=0)
DEFAULTS = {field.name: field.default for field in fields(GanConfig)}


def widths(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Return the channels at 4x4, 8x8, ...: numbers with commas."""
    if value is None:
        return None
    parts = value.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"{value!r} is no list of widths; expected for example 256,256,128,64")
    return tuple(int(part) for part in parts)


def setting(option: str, kind: Any, help: str, *, of: str = "") -> Callable[[F], F]:
    """Return the option for a field of `GanConfig`, with that field's default."""
    name = of or option.removeprefix("--").split("/")[0].replace("-", "_")
    shown = DEFAULTS[name] is not None
    return click.option(option, name, type=kind, default=DEFAULTS[name], show_default=shown, help=help)


@click.command("generator")
@click.option("--images", "photos", type=Folder, help="Photos to learn from; the middle square of each.")
@click.option("--resolution", type=int, required=True, help="Side of the pictures: 16, 32, ... 1024.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Run folder.")
@click.option("--validation", type=Folder, help="Photos never trained on, to see overfitting by.")
@click.option(
    "--channels", callback=widths, metavar="N,N,...", help="Widths at 4x4, 8x8, ...  [default: 256,256,...]"
)
@click.option(
    "--discriminator-channels", callback=widths, metavar="N,N,...", help="[default: the generator's]"
)
@click.option("--style-dim", type=Positive, default=256, show_default=True, help="Length of a style.")
@click.option("--mapping-layers", type=Positive, default=4, show_default=True, help="Layers from z to w.")
@setting("--count", Positive, "Photos to show in all.", of="images")
@setting("--batch", Positive, "Photos a step, over all GPUs.")
@setting("--accumulate", Positive, "Passes for one step, where memory is small.")
@setting("--learning-rate", NotNegative, "Rate of Adam, for both networks.")
@setting("--r1-weight", NotNegative, "Gradient penalty.  [default: 0.0002 resolution^2 / batch]")
@setting("--r1-interval", Positive, "Steps between two penalties.")
@setting("--path-weight", NotNegative, "Path-length regularisation; 0 for none.")
@setting("--path-interval", Positive, "Steps between two of them.")
@setting("--mixing", click.FloatRange(0, 1), "Share of codes mixed of two styles.")
@setting("--augment/--no-augment", bool, "Augment what the discriminator sees, as needed.")
@setting("--augment-target", click.FloatRange(-1, 1), "Realness above which to augment more.")
@setting("--augment-images", Positive, "Photos it takes from no augmentation to full.")
@setting("--mirror/--no-mirror", bool, "Show every second photo mirrored.")
@setting("--halflife-images", NotNegative, "Half-life of the running average.")
@setting("--precision", click.Choice(["bf16", "fp32"]), "Of the convolutions.")
@setting("--seed", click.IntRange(min=0), "Of all that is random.")
@setting("--report-images", Positive, "Photos between two reports.")
@setting("--checkpoint-images", Positive, "Photos between two checkpoints.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--compile/--no-compile", "compiled", default=False, help="Compile first (minutes).")
@click.option("--dry-run", is_flag=True, help="Show the settings and sizes, and stop. Needs no files.")
@click.option("--profile", "profiled", is_flag=True, help="Show where the time goes, and stop.")
def command(
    photos: Path | None,
    output: Path | None,
    validation: Path | None,
    device: str,
    compiled: bool,
    dry_run: bool,
    profiled: bool,
    **settings: Any,
) -> None:
    """Train a StyleGAN2 generator on a folder of photos; run the same command again to resume.

    On several GPUs: torchrun --nproc-per-node 4 -m trainer generator ...

    RUN/latest.pt is then a model for `python -m export`, and the generator that `python -m trainer
    encoder` builds upon.
    """
    config = configured(**settings)
    if dry_run:
        click.echo(describe(config))
        return
    if photos is None or (output is None and not profiled):
        raise InputError("name the photos with --images DIR and the run folder with --output RUN")
    with team.joined(device) as member:
        real = load_photos(photos, config, member)
        if profiled:
            show_profile(config, real, member, compiled=compiled)
        elif output is not None:
            held_out = load_photos(validation, config, member) if validation else None
            reports = loop.train(
                config, real, team=member, output=output, held_out=held_out, compiled=compiled
            )
            for report in reports:
                click.echo(line(report, config))


def configured(
    *,
    resolution: int,
    channels: tuple[int, ...] | None,
    discriminator_channels: tuple[int, ...] | None,
    style_dim: int,
    mapping_layers: int,
    **settings: Any,
) -> GanConfig:
    """Return the settings of a command line."""
    widths = channels or default_channels(resolution)
    config = GanConfig(
        generator=GeneratorConfig(channels=widths, style_dim=style_dim, mapping_layers=mapping_layers),
        discriminator=DiscriminatorConfig(channels=discriminator_channels or widths),
        **settings,
    )
    if config.size != resolution:
        raise InputError(
            f"{len(widths)} widths are for {config.size} pixels; for {resolution} give one for each of "
            f"4x4, 8x8, ... {resolution}x{resolution}"
        )
    return config


def describe(config: GanConfig) -> str:
    """Return the settings as JSON, with the number of parameters."""
    networks: dict[str, nn.Module] = {
        "generator_parameters": Generator(config.generator),
        "discriminator_parameters": Discriminator(config.discriminator),
    }
    sizes = {name: sum(value.numel() for value in network.parameters()) for name, network in networks.items()}
    return json.dumps(config.plain() | sizes, indent=2)


def load_photos(folder: Path, config: GanConfig, member: team.Team) -> RealPhotos:
    """Read a folder and say what was found."""
    photos = RealPhotos.load(folder, size=config.size, device=member.device, seed=config.seed)
    if member.leads:
        click.echo(f"{len(photos)} photos from {folder}, kept on {photos.pixels.device}")
        for text in left_out(photos.skipped) + shortfall(member.device, wanted=config.precision == "bf16"):
            click.echo(text)
    return photos


def show_profile(config: GanConfig, photos: RealPhotos, member: team.Team, *, compiled: bool) -> None:
    """Print where the time of a step goes."""
    run = Run.start(config, device=member.device)
    times = profile.measure(run, Forward.of(run, compiled=compiled), photos, member)
    share = times.pop("networks_share")
    if member.leads:
        for name, milliseconds in times.items():
            click.echo(f"{name:24} {milliseconds:9.2f} ms")
        click.echo(f"{'images per second':24} {config.batch / times['step'] * 1e3:9.1f}")
        click.echo(f"{'inside the networks':24} {share:9.1%}")


def line(report: dict[str, float], config: GanConfig) -> str:
    """Return one report for people; log.jsonl has all of it."""
    progress = progress_line(int(report["images_seen"]), config.images, report["images_per_second"])
    names = {
        "discriminator_loss": "D",
        "generator_loss": "G",
        "augmentation": "p",
        "overfitting": "overfitting",
    }
    figures = "  ".join(f"{short} {report[name]:.3f}" for name, short in names.items() if name in report)
    return f"{progress}  {figures}"
