"""The command line of the trainer; `python -m trainer` runs it."""

from typing import Any

import click

from psp_rt.cli.group import INTERRUPTED, Commands
from trainer.cli import encoder, evaluate, generator, joint
from trainer.loop.distributed import Interrupted


class TrainingCommands(Commands):
    """Commands that a user can stop: the message is then not an error."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            if not isinstance(error.__cause__, Interrupted):
                raise
            click.echo(str(error.__cause__), err=True)
            ctx.exit(INTERRUPTED)


@click.group(cls=TrainingCommands)
def main() -> None:
    """Train pSp models."""


for module in (encoder, generator, joint, evaluate):
    main.add_command(module.command)
