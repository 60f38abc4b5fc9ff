"""The error of a contender that cannot run here."""


class Unavailable(Exception):
    """A contender cannot run here; the message says why, and what would change that."""
