"""``python -m trainer joint``."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import torch

from psp_rt.errors import InputError
from trainer.data.joint_pairs import TASKS
from trainer.joint.config import JointConfig, generator_of
from trainer.joint.run import Model
from trainer.joint.training import Start, train
from trainer.loop.distributed import joined
from trainer.loop.precision import shortfall
from trainer.losses.criterion import LossWeights, needed_files
from trainer.losses.lpips import LpipsAlex
from trainer.settings import parse_change, typed

NEEDS = {
    "--images": "a folder of aligned portraits to learn from",
    "--validation": "a folder of portraits of others to measure on",
    **needed_files(LossWeights(), "alex"),
    "--output": "a folder for the run",
}
Folder = click.Path(exists=True, file_okay=False, path_type=Path)
File = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("joint")
@click.option("--images", type=Folder, help="Aligned portraits to learn from.")
@click.option("--validation", type=Folder, help="Portraits to measure on; never trained on.")
@click.option("--lpips-features", type=File, help="AlexNet weights in torchvision's format.")
@click.option("--lpips-heads", type=File, help="LPIPS v0.1 weights, alex.pth.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Run folder.")
@click.option(
    "--task",
    "tasks",
    type=click.Choice(list(TASKS)),
    multiple=True,
    help="May be given several times; default: sketch and inversion.",
)
@click.option(
    "--size", type=click.Choice(["32", "64", "128"]), default="64", show_default=True, help="Of the pictures."
)
@click.option("--head-width", default=JointConfig.head_width, show_default=True, help="Of the encoders.")
@click.option("--count", default=JointConfig.images, show_default=True, help="Photos to train on.")
@click.option(
    "--adversarial-from",
    default=JointConfig.adversarial_from,
    show_default=True,
    help="Photos after which the discriminator joins in.",
)
@click.option(
    "--set",
    "changes",
    metavar="NAME=VALUE",
    multiple=True,
    help="Change another setting of trainer/joint/config.py, as in --set adversarial=0.05.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--start-from",
    metavar="[TASK=]FILE",
    multiple=True,
    help="Checkpoint to begin with, of the same sizes, a smaller picture or wider heads; one for each task. "
    "TASK= begins another task with it.",
)
@click.option("--dry-run", is_flag=True, help="Print the settings; needs no files.")
def command(
    images: Path | None,
    validation: Path | None,
    lpips_features: Path | None,
    lpips_heads: Path | None,
    output: Path | None,
    tasks: tuple[str, ...],
    size: str,
    head_width: int,
    count: int,
    adversarial_from: int,
    changes: tuple[str, ...],
    device: str,
    start_from: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Train a small generator and its encoders together; run again to resume.

    On a CPU, one process for each core is fastest: OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m
    trainer joint ...
    """
    config = JointConfig(
        generator=generator_of(int(size)),
        tasks=tasks or JointConfig.tasks,
        head_width=head_width,
        images=count,
        adversarial_from=adversarial_from,
    )
    given = {name: value for change in changes for name, value in parse_change(change).items()}
    config = replace(config, **typed(JointConfig, given, "--set"))
    named = {
        "--images": images,
        "--validation": validation,
        "--lpips-features": lpips_features,
        "--lpips-heads": lpips_heads,
        "--output": output,
    }
    if dry_run:
        click.echo(json.dumps(describe(config, named), indent=2))
        return
    if (
        images is None
        or validation is None
        or output is None
        or lpips_features is None
        or lpips_heads is None
    ):
        missing = next(option for option, path in named.items() if path is None)
        raise InputError(f"name {NEEDS[missing]} with {missing}; --dry-run shows the settings without it")
    lpips = LpipsAlex.load(features=lpips_features, heads=lpips_heads)
    with joined(device) as team:
        for text in shortfall(team.device) if team.leads else []:
            click.echo(text)
        reports = train(
            config,
            images=images,
            validation=validation,
            output=output,
            lpips=lpips,
            start_from=[Start.parse(text) for text in start_from],
            team=team,
        )
        for report in reports:
            click.echo(json.dumps({name: round(value, 4) for name, value in report.items()}))


def describe(config: JointConfig, named: Mapping[str, Path | None]) -> dict[str, Any]:
    """Return the settings as they would run, and what has not been named yet."""
    with torch.device("meta"):  # no memory for weights that nobody uses
        model = Model(config)
    return {
        "settings": asdict(config),
        "generator_size": config.generator.size,
        "generator_parameters": sum(value.numel() for value in model.generator.parameters()),
        "encoder_parameters": {
            task: sum(value.numel() for value in encoder.parameters())
            for task, encoder in model.encoders.items()
        },
        "files": {option: str(path) for option, path in named.items() if path},
        "needs": {option: what for option, what in NEEDS.items() if named[option] is None},
    }
