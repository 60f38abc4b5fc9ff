"""Write engine files."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ..errors import FormatError, OutputError
from ..files import CHUNK, replacing
from .manifest import Manifest, Member
from .reader import MANIFEST, EngineFile

ALIGNMENT = 64  # bytes
_PADDING = 0xD935  # Android zipalign's id of the extra field used for padding

Content = bytes | memoryview | Path


def write_engine(
    path: str | os.PathLike[str], manifest: Manifest, members: Mapping[str, Content]
) -> Manifest:
    """Write an engine file and return its manifest with the members' hashes filled in.

    The file appears under its name when it is complete and on the disk.

    Raises:
        OutputError: The file cannot be written, for example because the disk is full, or could not be
            read again.
    """
    with replacing(path, durable=True) as temporary:
        manifest = replace(manifest, members={name: _describe(content) for name, content in members.items()})
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            _add(archive, MANIFEST, manifest.to_json().encode())
            for name, content in members.items():
                _add(archive, name, content)
        _check_readable(temporary, path)
    return manifest


def add_plans(
    path: Path, target: str, files: Mapping[str, Content], *, output: Path | None = None, strip: bool = False
) -> Manifest:
    """Rewrite an engine with plans for one more target; plans for other targets stay.

    Args:
        path: The engine; its members' hashes are checked on the way.
        target: The folder below plans/; its present content is replaced.
        files: The new content by name.
        output: Write another engine file; None replaces this one.
        strip: Leave out the graphs and their weights.

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


def _check_readable(temporary: Path, path: str | os.PathLike[str]) -> None:
    """Check that the file can be opened again; one with too many members could not."""
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
    header_size = 30 + len(name) + (20 if zip64 else 0) + 4  # the last: the padding field's own header
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
            while chunk := file.read(CHUNK):
                yield chunk
    else:
        view = memoryview(content)
        for at in range(0, len(view), CHUNK):
            yield view[at : at + CHUNK]
