"""A command that shows our own errors as messages."""

import click

from psp_rt.errors import PspError


class Command(click.Command):
    """Shows our own errors as messages; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except PspError as error:
            raise click.ClickException(str(error)) from error
