"""``python -m trainer joint``: train a small generator and its encoders together."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch

from trainer.cli import options
from trainer.joint import config as configs
from trainer.joint.config import TASKS, JointConfig
from trainer.joint.run import Model
from trainer.joint.training import Start, train
from trainer.loop.average import precision_notes
from trainer.loop.distributed import joined
from trainer.loop.report import Progress
from trainer.losses.criterion import LossWeights, needed_files
from trainer.losses.identity import Identity
from trainer.losses.lpips import LpipsAlex

NEEDS = {
    "--images": "a folder of aligned portraits to learn from",
    "--validation": "a folder of portraits of others to measure on",
    "--output": "a folder for the run",
}


def needs_of(config: JointConfig) -> dict[str, str]:
    """Return the options that a run with these settings needs, each with what it is."""
    return NEEDS | needed_files(LossWeights(identity=config.identity), "alex")


@click.command("joint")
@options.images
@options.align
@options.validation
@options.lpips
@options.identity
@options.output
@click.option(
    "--task",
    "tasks",
    type=click.Choice(list(TASKS)),
    multiple=True,
    help="May be given several times; default: sketch and inversion.",
)
@options.config
@options.changes
@options.small
@click.option(
    "--start-from",
    metavar="[TASK=]FILE",
    multiple=True,
    help="Checkpoint to start with, of the same sizes, a smaller picture or wider heads; one per task. "
    "TASK= starts another task with it.",
)
@options.device
@options.dry_run
def command(
    images: Path | None,
    align: bool,
    validation: Path | None,
    lpips_features: Path | None,
    lpips_heads: Path | None,
    identity: Path | None,
    output: Path | None,
    tasks: tuple[str, ...],
    config: Path | None,
    changes: tuple[str, ...],
    small: bool,
    start_from: tuple[str, ...],
    device: str,
    dry_run: bool,
) -> None:
    """Train a small generator and its encoders together; run the same command again to resume.

    Settings are those of trainer/joint/config.py, as in --set size=128 --set images=100000. On a CPU, one
    process per core is fastest: OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m trainer joint ...
    """
    chosen = (f"tasks={json.dumps(tasks)}",) if tasks else ()
    settings = configs.read(config, (*(configs.SMALL if small else ()), *chosen, *changes))
    named = {
        "--images": images,
        "--validation": validation,
        "--lpips-features": lpips_features,
        "--lpips-heads": lpips_heads,
        "--identity": identity,
        "--output": output,
    }
    if dry_run:
        click.echo(json.dumps(describe(settings, named), indent=2))
        return
    options.require_named(needs_of(settings), named)
    assert images and validation and output and lpips_features and lpips_heads  # noqa: PT018  # as required
    with joined(device) as team:
        progress = Progress(silent=not team.leads)
        if align:
            images = options.aligned(images, output, progress)
            validation = options.aligned(validation, output, progress)
        assert images and validation  # noqa: PT018
        progress.say(f"training {', '.join(settings.tasks)} together at {settings.size} pixels")
        for note in precision_notes(team.device):
            progress.say(note)
        lpips = LpipsAlex.load(features=lpips_features, heads=lpips_heads)
        for report in train(
            settings,
            images=images,
            validation=validation,
            output=output,
            lpips=lpips,
            identity=Identity.load(identity) if settings.identity and identity else None,
            start_from=[Start.parse(text) for text in start_from],
            team=team,
            progress=progress,
        ):
            click.echo(options.as_line(report))


def describe(config: JointConfig, named: Mapping[str, Path | None]) -> dict[str, Any]:
    """Return the settings as they would run, and which options are still missing."""
    with torch.device("meta"):  # takes no memory
        model = Model(config)
    return {
        "settings": asdict(config),
        "generator_size": config.size,
        "generator_parameters": sum(value.numel() for value in model.generator.parameters()),
        "encoder_parameters": {
            task: sum(value.numel() for value in encoder.parameters())
            for task, encoder in model.encoders.items()
        },
        "files": {option: str(path) for option, path in named.items() if path},
        "needs": {option: what for option, what in needs_of(config).items() if named[option] is None},
    }
