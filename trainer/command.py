"""The command line of the trainer; `python -m trainer` runs it."""

import click

from psp_rt.errors import PspError
from trainer import encoder_command
from trainer.evaluation import command as evaluation_command
from trainer.gan import command as gan_command
from trainer.joint import command as joint_command


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


main.add_command(encoder_command.command)
main.add_command(gan_command.command)
main.add_command(joint_command.command)
main.add_command(evaluation_command.command)
