"""Commands whose errors are messages, and whose interruption is a word."""

from __future__ import annotations

from typing import Any

import click

from ..errors import PspError
from .missing import INTERRUPTED


class _ShownErrors:
    """Shows our own errors as messages; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)  # type: ignore[misc]  # click's, which is mixed in
        except PspError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)


class Command(_ShownErrors, click.Command):
    """One command."""


class Commands(_ShownErrors, click.Group):
    """A group of commands."""
