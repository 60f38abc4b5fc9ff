"""Write files so that they appear under their name whole or not at all.

A file grows under a temporary name in the same folder and is renamed when it is complete, so an error,
a full disk or a kill leaves the previous file as it was.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import OutputError

AnyPath = str | os.PathLike[str]
CHUNK = 1 << 20  # bytes read at a time


def write_atomically(path: AnyPath, content: bytes | str) -> None:
    """Write a small file; text is stored as UTF-8.

    Raises:
        OutputError: It cannot be written; a file of that name is as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(path: AnyPath, *, durable: bool = False) -> Iterator[Path]:
    """Yield the name of an empty file that takes the place of ``path`` when the block ends normally.

    Args:
        path: A symbolic link stays one, and the file that it points to is replaced. An existing
            file's permissions are kept.
        durable: Wait until the content has reached the disk before renaming, so that the file also
            survives a power failure.

    Raises:
        OutputError: It cannot be written. An OSError in the block is reported as this error, too.
    """
    path = Path(os.path.realpath(path))
    with _temporary_file(path) as temporary:
        yield temporary
        if durable:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        if path.exists():
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        os.replace(temporary, path)


def check_writable(path: AnyPath) -> None:
    """Raise OutputError if ``path`` cannot be written, before any work is done for it."""
    with _temporary_file(Path(os.path.realpath(path))):
        pass


def check_apart(output: AnyPath, *sources: AnyPath | None) -> None:
    """Raise OutputError if the output is one of the files that are read for it."""
    for source in sources:
        if source is not None and os.path.realpath(source) == os.path.realpath(output):
            raise OutputError(f"{output} is an input and would be overwritten; choose another output")


@contextmanager
def folder_beside(output: Path, *, otherwise: str) -> Iterator[Path]:
    """Make a temporary folder on the disk where ``output`` will be: its parts may be gigabytes.

    Args:
        output: The file that is assembled from the parts.
        otherwise: What an error adds about ``output`` when something cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".psp-rt-") as name:
            yield Path(name)
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror or error}. {otherwise}") from error


def sha256(path: AnyPath) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _temporary_file(path: Path) -> Iterator[Path]:
    """Make an empty file in the folder of ``path``; remove it at the end unless it was renamed."""
    if not path.name or path.is_dir():
        raise OutputError(f"{path} is a folder; give the name of a file")
    # The name does not contain the target's, which may already have the longest length allowed.
    temporary = path.with_name(f".psp-rt-{os.urandom(8).hex()}")
    try:
        temporary.touch(exist_ok=False)
        yield temporary
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # it was renamed, or its folder is none or no longer there
            temporary.unlink()
