"""The errors that only the export raises."""

from collections.abc import Iterator
from contextlib import contextmanager

from psp_rt.errors import PspError


class CheckpointError(PspError):
    """A checkpoint is damaged, hostile, of an unknown format, or of an architecture we cannot read."""


class ParityError(PspError):
    """An exported graph does not compute what its checkpoint does."""


@contextmanager
def reading(source: str) -> Iterator[None]:
    """Put the name of the file before what is wrong in it."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
