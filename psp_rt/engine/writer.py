"""Writing engine files: whole or not at all."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ..errors import FormatError, OutputError
from .manifest import Manifest, Member
from .reader import MANIFEST, EngineFile

ALIGNMENT = 64  # bytes
_PADDING = 0xD935  # the id that Android's zipalign gives to the extra field that pads
_CHUNK = 1 << 20

Content = bytes | memoryview | Path


def write_engine(
    path: str | os.PathLike[str], manifest: Manifest, members: Mapping[str, Content]
) -> Manifest:
    """Write an engine file and return its manifest with the members' hashes filled in.

    The file appears under its name when it is complete and on the disk; until then it grows
    under a temporary name beside it, and an error leaves neither behind.

    Raises:
        OutputError: The file cannot be written, for example because the disk is full, or could not be
            read again.
    """
    path = Path(os.path.realpath(path))  # a link stays one, and what it names is written
    with _beside(path) as temporary:
        manifest = replace(manifest, members={name: _describe(content) for name, content in members.items()})
        with open(temporary, "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                _add(archive, MANIFEST, manifest.to_json().encode())
                for name, content in members.items():
                    _add(archive, name, content)
            file.flush()
            os.fsync(file.fileno())
        _check_readable(temporary, path)
        if path.exists():
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        os.replace(temporary, path)
    return manifest


def add_plans(
    path: Path, target: str, files: Mapping[str, Content], *, output: Path | None = None, strip: bool = False
) -> Manifest:
    """Write an engine again with plans for one more target; plans for other targets stay.

    Args:
        path: The engine; what it holds is checked on the way.
        target: The folder below plans/; what is in it already is replaced.
        files: By their names in that folder.
        output: Another engine file to write; None to take the place of this one.
        strip: Leave the graphs and their weights out.

    Raises:
        FormatError: A member is damaged.
        OutputError: The file cannot be written; the old one is as it was.
    """
    folder = f"plans/{target}/"
    with EngineFile.open(path) as engine:
        kept = [name for name in engine.names if name != MANIFEST and not name.startswith(folder)]
        if strip:
            kept = [name for name in kept if not name.endswith((".onnx", ".weights"))]
        members: dict[str, Content] = {name: engine.view(name) for name in kept}
        members |= {folder + name: content for name, content in files.items()}
        manifest = replace(engine.manifest, stripped=engine.manifest.stripped or strip)
        return write_engine(output or path, manifest, members)


def check_apart(output: str | os.PathLike[str], *sources: str | os.PathLike[str] | None) -> None:
    """Refuse an output that is one of the files read for it."""
    for source in sources:
        if source is not None and os.path.realpath(source) == os.path.realpath(output):
            raise OutputError(f"{output} is an input, and would be overwritten; choose another output")


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse an output that cannot be written, before any work is done for it."""
    with _beside(Path(path)):
        pass


@contextmanager
def folder_beside(output: Path, *, otherwise: str) -> Iterator[Path]:
    """Make a folder for parts on the disk where ``output`` will be: they may be gigabytes.

    Args:
        output: The file that is made of the parts.
        otherwise: What an error says of it when something cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as name:
            yield Path(name)
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror or error}. {otherwise}") from error


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Make an empty file beside ``path``, and remove it afterwards if it still has its own name."""
    if not path.name or path.is_dir():
        raise OutputError(f"{path} is a folder; give the name of a file")
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        temporary.touch(exist_ok=False)
        yield temporary
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _check_readable(temporary: Path, path: Path) -> None:
    """Refuse to put a file under its name that nobody could open, such as one with too many members."""
    try:
        with EngineFile.open(temporary, needs_graphs=False):
            pass
    except FormatError as error:
        reason = str(error).replace(str(temporary), "what would be written")
        raise OutputError(f"{path} is not written: {reason}") from error


def _describe(content: Content) -> Member:
    digest, size = hashlib.sha256(), 0
    for chunk in _chunks(content):
        digest.update(chunk)
        size += len(chunk)
    return Member(sha256=digest.hexdigest(), size=size)


def _add(archive: zipfile.ZipFile, name: str, content: Content) -> None:
    """Append a member whose data begin at a multiple of 64 bytes."""
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    info.file_size = content.stat().st_size if isinstance(content, Path) else len(content)
    zip64 = info.file_size * 1.05 > zipfile.ZIP64_LIMIT  # the rule of ZipFile.open
    header_size = 30 + len(name) + (20 if zip64 else 0) + 4  # the last: the head of the padding itself
    assert archive.fp is not None
    data_at = archive.fp.tell() + header_size
    padding = -data_at % ALIGNMENT
    info.extra = struct.pack("<HH", _PADDING, padding) + bytes(padding)
    with archive.open(info, "w", force_zip64=zip64) as member:
        for chunk in _chunks(content):
            member.write(chunk)


def _chunks(content: Content) -> Iterator[bytes | memoryview]:
    if isinstance(content, Path):
        with open(content, "rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    else:
        view = memoryview(content)
        for at in range(0, len(view), _CHUNK):
            yield view[at : at + _CHUNK]
