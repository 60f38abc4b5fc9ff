"""Errors that only the export raises."""

from collections.abc import Iterator
from contextlib import contextmanager

from psp_rt.errors import PspError


class CheckpointError(PspError):
    """A checkpoint is damaged, malicious, or of an unsupported format or architecture."""


class ParityError(PspError):
    """An exported graph does not compute what its checkpoint computes."""


@contextmanager
def reading(source: str) -> Iterator[None]:
    """Prefix the message of a `CheckpointError` with the name of the file."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
