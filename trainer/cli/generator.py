"""``python -m trainer generator``: train a StyleGAN2."""

import json
from pathlib import Path

import click
import torch

from trainer.cli import options
from trainer.data.photos import PhotoSet
from trainer.generator import config as configs
from trainer.generator.config import GanConfig
from trainer.generator.training import train
from trainer.loop.average import precision_notes
from trainer.loop.distributed import Team, joined
from trainer.loop.report import Progress, skipped_lines
from trainer.networks import Generator
from trainer.networks.discriminator import Discriminator

NEEDS = {"--images": "a folder of photos", "--output": "a folder for the run"}


@click.command("generator")
@options.images
@options.align
@options.validation
@options.output
@options.config
@options.changes
@options.small
@options.device
@options.compiled
@options.dry_run
def command(
    images: Path | None,
    align: bool,
    validation: Path | None,
    output: Path | None,
    config: Path | None,
    changes: tuple[str, ...],
    small: bool,
    device: str,
    compiled: bool,
    dry_run: bool,
) -> None:
    """Train a StyleGAN2 generator on a folder of photos; run the same command again to resume.

    Settings are those of trainer/generator/config.py, as in --set size=128 --set images=600000.
    On several GPUs: torchrun --nproc-per-node 4 -m trainer generator ...

    RUN/latest.pt is then a model for `python -m export`, and the generator for `python -m trainer encoder`.
    """
    settings = configs.read(config, (*(configs.SMALL if small else ()), *changes))
    if dry_run:
        click.echo(json.dumps(describe(settings), indent=2))
        return
    options.require_named(NEEDS, {"--images": images, "--output": output})
    assert images is not None
    assert output is not None
    with joined(device) as team:
        progress = Progress(silent=not team.leads)
        if align:
            images = options.aligned(images, output, progress)
            validation = options.aligned(validation, output, progress)
        assert images is not None
        photos = load_photos(images, settings, team, progress)
        held_out = load_photos(validation, settings, team, progress) if validation else None
        for note in precision_notes(team.device, wanted=settings.precision == "bf16"):
            progress.say(note)
        for report in train(
            settings,
            photos,
            team=team,
            output=output,
            held_out=held_out,
            compiled=compiled,
            progress=progress,
        ):
            click.echo(options.as_line(report))


def describe(config: GanConfig) -> dict[str, object]:
    """Return the settings and the number of parameters."""
    with torch.device("meta"):  # takes no memory
        networks = {
            "generator_parameters": Generator(config.generator),
            "discriminator_parameters": Discriminator(config.discriminator),
        }
    sizes = {name: sum(value.numel() for value in network.parameters()) for name, network in networks.items()}
    return config.plain() | sizes


def load_photos(folder: Path, config: GanConfig, team: Team, progress: Progress) -> PhotoSet:
    """Read a folder and show what was found."""
    photos = PhotoSet.load(
        folder, size=config.size, device=team.device, seed=config.seed, show=progress.count
    )
    for line in [f"{len(photos)} photos from {folder}", *skipped_lines(photos.skipped)]:
        progress.say(line)
    return photos
