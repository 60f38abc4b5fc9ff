"""The command line of the trainer; `python -m trainer` runs it."""

import click

from psp_rt.shown_errors import Commands
from trainer import encoder_command
from trainer.evaluation import command as evaluation_command
from trainer.gan import command as gan_command
from trainer.joint import command as joint_command


@click.group(cls=Commands)
def main() -> None:
    """Train pSp models."""


main.add_command(encoder_command.command)
main.add_command(gan_command.command)
main.add_command(joint_command.command)
main.add_command(evaluation_command.command)
