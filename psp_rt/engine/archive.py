"""Where the members of a stored zip lie, read so strictly that a hostile file can do no harm.

Python's ``zipfile`` reads whatever directory a file claims to have, inflates, and follows offsets.
An engine needs less: a few stored members, so that every byte range can be checked before use.
The structures are those of PKWARE's APPNOTE 6.3.10, sections 4.3.7 (local header), 4.3.12 (central
directory), 4.3.14 to 4.3.16 (end records) and 4.5.3 (ZIP64).
"""

from __future__ import annotations

import re
import stat
import struct
from dataclasses import dataclass
from mmap import mmap

from ..errors import FormatError

MAX_MEMBERS = 256
MAX_DIRECTORY = 1 << 20  # bytes
_LOCAL = struct.Struct("<4s5H3I2H")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_ZIP64 = 1  # the id of the extra field that holds sizes beyond 32 bits


@dataclass(frozen=True, kw_only=True)
class Span:
    """The bytes of one member, from the beginning of the file."""

    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class _Entry:
    name: str
    header_offset: int
    size: int


def read_layout(data: mmap) -> dict[str, Span]:
    """Return where each member lies.

    Raises:
        FormatError: The file is no zip, is cut off, or holds what an engine never does: compressed,
            encrypted, linked, duplicate or overlapping members, or names that lead elsewhere.
    """
    count, start, end = _directory_bounds(data)
    spans: dict[str, Span] = {}
    previous_end = 0
    for entry in sorted(_entries(data[start:end], count), key=lambda entry: entry.header_offset):
        if entry.name in spans:
            raise FormatError(f"it holds {entry.name!r} twice")
        if entry.header_offset < previous_end:
            raise FormatError(f"{entry.name!r} overlaps another member")
        span = _locate(data, entry, start)
        spans[entry.name] = span
        previous_end = span.offset + span.size
    return spans


def _directory_bounds(data: mmap) -> tuple[int, int, int]:
    """Return the number of entries, and where the central directory starts and ends."""
    end_at = len(data) - _END.size
    if end_at < 0 or data[end_at : end_at + 4] != b"PK\5\6":
        raise FormatError("it is no zip, or its end is missing; copy or download it again")
    _, disk, _, _, count, size, start, _ = _END.unpack_from(data, end_at)
    directory_end = end_at
    locator_at = max(0, end_at - _LOCATOR.size)
    has_locator = data[locator_at : locator_at + 4] == b"PK\6\7"
    if has_locator or _FULL16 in (count, disk) or _FULL32 in (size, start):
        count, size, start, directory_end = _end64(data, end_at)
    if count > MAX_MEMBERS or size > MAX_DIRECTORY:
        raise FormatError(f"it claims {count} members; an engine has at most {MAX_MEMBERS}")
    if start + size != directory_end:
        raise FormatError("its directory is not where its end says; it was cut off or changed")
    return count, start, directory_end


def _end64(data: mmap, end_at: int) -> tuple[int, int, int, int]:
    locator_at = end_at - _LOCATOR.size
    record_at = locator_at - _END64.size
    if (
        record_at < 0
        or data[locator_at : locator_at + 4] != b"PK\6\7"
        or data[record_at : record_at + 4] != b"PK\6\6"
    ):
        raise FormatError("its ZIP64 end record is missing; it was cut off or changed")
    count, size, start = _END64.unpack_from(data, record_at)[7:]
    return count, size, start, record_at


def _entries(directory: bytes, count: int) -> list[_Entry]:
    entries, at = [], 0
    for _ in range(count):
        if len(directory) - at < _ENTRY.size or directory[at : at + 4] != b"PK\1\2":
            raise FormatError("its directory is damaged; copy or download it again")
        fields = _ENTRY.unpack_from(directory, at)
        name_at, (name_size, extra_size, comment_size) = at + _ENTRY.size, fields[10:13]
        extra_at = name_at + name_size
        at = extra_at + extra_size + comment_size
        if at > len(directory):
            raise FormatError("its directory is damaged; copy or download it again")
        name = _checked_name(directory[name_at:extra_at])
        entries.append(_entry(name, fields, directory[extra_at : extra_at + extra_size]))
    if at != len(directory):
        raise FormatError("its directory holds more than it says; it was changed")
    return entries


def _checked_name(raw: bytes) -> str:
    """Return a member's name, if it stays inside the folder it would be unpacked into."""
    name = raw.decode("utf-8", "replace")
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        raise FormatError(f"its member {name!r} has an absolute path")
    if ".." in name.split("/"):
        raise FormatError(f"its member {name!r} leads out of its folder ('..')")
    if "\\" in name:
        raise FormatError(f"its member {name!r} has a backslash in its name")
    if not re.fullmatch(r"[A-Za-z0-9_.+-]{1,80}(/[A-Za-z0-9_.+-]{1,80}){0,4}", name):
        raise FormatError(f"its member {name[:80]!r} is no file name that an engine uses")
    return name


def _entry(name: str, fields: tuple[int, ...], extra: bytes) -> _Entry:
    flags, method, packed_size, size = fields[3], fields[4], fields[8], fields[9]
    header_offset, mode = fields[16], fields[15] >> 16
    if flags & 0x2041:  # bits 0, 6 and 13
        raise FormatError(f"its member {name!r} is encrypted; expected plain members")
    if method != 0:
        raise FormatError(f"its member {name!r} is compressed; repack with: zip -0")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise FormatError(f"its member {name!r} is a link or a special file; expected plain files")
    if _FULL32 in (packed_size, size, header_offset):
        size, packed_size, header_offset = _sizes64(name, extra, size, packed_size, header_offset)
    if packed_size != size:
        raise FormatError(f"its member {name!r} has two sizes, {packed_size} and {size}; it was changed")
    return _Entry(name=name, header_offset=header_offset, size=size)


def _sizes64(name: str, extra: bytes, *sizes: int) -> list[int]:
    """Return the sizes, those that do not fit 32 bits taken from the ZIP64 extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        field = extra[at + 4 : at + 4 + length]
        if kind == _ZIP64 and len(field) >= 8 * sum(size == _FULL32 for size in sizes):
            values = iter(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
            return [next(values) if size == _FULL32 else size for size in sizes]
        at += 4 + length
    raise FormatError(f"its member {name!r} has no ZIP64 sizes; it was changed")


def _locate(data: mmap, entry: _Entry, directory_start: int) -> Span:
    """Return the bytes of a member, after checking that its own header agrees."""
    name, at = entry.name, entry.header_offset
    if at + _LOCAL.size > directory_start or data[at : at + 4] != b"PK\3\4":
        raise FormatError(f"its member {name!r} is not where its directory says; it was cut off or changed")
    fields = _LOCAL.unpack_from(data, at)
    name_at, (name_size, extra_size) = at + _LOCAL.size, fields[9:11]
    if fields[3] != 0 or data[name_at : name_at + name_size] != name.encode():
        raise FormatError(f"its member {name!r} has another name or method in its own header; it was changed")
    offset = name_at + name_size + extra_size
    if offset + entry.size > directory_start:
        raise FormatError(
            f"its member {name!r} claims {entry.size} bytes, more than the file holds; it was cut off"
        )
    return Span(offset=offset, size=entry.size)
