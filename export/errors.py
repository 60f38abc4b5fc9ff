"""Errors that only the export raises."""

from collections.abc import Iterator
from contextlib import contextmanager

from psp_rt.errors import InputError, PspError


class CheckpointError(PspError):
    """A checkpoint is damaged, malicious, or of an unsupported format or architecture."""


class ParityError(PspError):
    """An exported graph does not compute what its checkpoint computes."""


@contextmanager
def reading(source: str) -> Iterator[None]:
    """Turn an error about a file's content into a `CheckpointError` that names the file."""
    try:
        yield
    except (CheckpointError, InputError) as error:
        raise CheckpointError(f"{source}: {error}") from error
