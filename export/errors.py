"""The errors that only the export raises."""

from psp_rt.errors import PspError


class CheckpointError(PspError):
    """A checkpoint is damaged, hostile, of an unknown format, or of an architecture we cannot read."""


class ParityError(PspError):
    """An exported graph does not compute what its checkpoint does."""
