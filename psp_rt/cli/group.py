"""Command-line behavior shared by psp-rt, export and trainer.

Our own errors are printed without a traceback, Ctrl-C exits with status 130, and a missing optional
package is reported together with the command that installs it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from ..errors import PspError

INTERRUPTED = 130  # 128 + SIGINT, the convention of shells
OWN_PACKAGES = {"psp_rt", "export", "trainer", "benchmarks"}


class _ShowsErrors:
    """Shows our own errors as messages; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)  # type: ignore[misc]  # of the click class that this is mixed into
        except PspError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)


class Command(_ShowsErrors, click.Command):
    """One command."""


class Commands(_ShowsErrors, click.Group):
    """A group of commands."""


@contextmanager
def require(purpose: str, *, install: str) -> Iterator[None]:
    """Exit with the command that installs a missing package, or on Ctrl-C while the block imports.

    Importing PyTorch takes seconds. A missing module of our own is a bug and keeps its traceback.

    Args:
        purpose: What needs the packages: "exporting".
        install: The command that installs them.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if not name or name in OWN_PACKAGES:
            raise
        sys.exit(f"Error: {purpose} needs {name}, which is not installed; install it with: {install}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
