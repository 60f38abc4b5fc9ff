"""The command line of the trainer; `python -m trainer` runs it."""

import click

from psp_rt.cli.group import Commands
from trainer.cli import encoder as encoder_command
from trainer.cli import evaluate as evaluation_command
from trainer.cli import generator as gan_command
from trainer.cli import joint as joint_command


@click.group(cls=Commands)
def main() -> None:
    """Train pSp models."""


main.add_command(encoder_command.command)
main.add_command(gan_command.command)
main.add_command(joint_command.command)
main.add_command(evaluation_command.command)
