"""Command line of the trainer: ``python -m trainer --help``."""

import json
from pathlib import Path

import click

from psp_rt.errors import PspError
from trainer import encoder_command, joint
from trainer.gan import command as gan_command
from trainer.losses.lpips import LpipsAlex
from trainer.team import join, leave

Folder = click.Path(exists=True, file_okay=False, path_type=Path)
File = click.Path(exists=True, dir_okay=False, path_type=Path)


class Commands(click.Group):
    """Shows our own errors as messages; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except PspError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Commands)
def main() -> None:
    """Train pSp models."""


@main.command("joint")
@click.option("--images", type=Folder, required=True, help="Aligned portraits to learn from.")
@click.option("--validation", type=Folder, required=True, help="Portraits to measure on; never trained on.")
@click.option("--lpips-features", type=File, required=True, help="AlexNet weights in torchvision's format.")
@click.option("--lpips-heads", type=File, required=True, help="LPIPS v0.1 weights, alex.pth.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Run folder.")
@click.option("--count", default=joint.JointConfig.images, show_default=True, help="Images to train on.")
@click.option("--compile/--no-compile", "compiled", default=False, help="Compile the model first (minutes).")
def joint_command(
    images: Path,
    validation: Path,
    lpips_features: Path,
    lpips_heads: Path,
    output: Path,
    count: int,
    compiled: bool,
) -> None:
    """Train a small sketch-to-face encoder and generator together; run again to resume.

    On a CPU, one process for each core is fastest: OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m
    trainer joint ...
    """
    lpips = LpipsAlex.load(features=lpips_features, heads=lpips_heads)
    config = joint.JointConfig(images=count)
    team = join("cpu")
    for report in joint.train(
        config,
        images=images,
        validation=validation,
        output=output,
        lpips=lpips,
        compiled=compiled,
        team=team,
    ):
        click.echo(json.dumps({name: round(value, 4) for name, value in report.items()}))
    leave(team)


main.add_command(encoder_command.command)
main.add_command(gan_command.command)

if __name__ == "__main__":
    main()
