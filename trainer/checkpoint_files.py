"""Read files of tensors: what `torch.save` writes, with any pickle protocol, and safetensors.

    zip of data.pkl and one member per storage    torch.save since 1.6
    five pickles, then the storages               torch.save before 1.6
    length, JSON header, data                     safetensors

No code in a file is run. What a file claims is compared with its size before memory is taken for it, so
reading takes at most a few times the size of the file. Compressed members are refused.
"""

import io
import json
import math
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from psp_rt.errors import InputError
from trainer import checkpoint_pickle
from trainer.checkpoint_pickle import Source, Storage, StorageType

MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the first pickle of torch.save before 1.6
MOST_PICKLE = 2**28  # bytes; data.pkl of a model takes about one megabyte
MOST_HEADER = 10**8  # bytes, as safetensors itself
DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool},
}


class Bounded:
    """A binary file, of which no read returns or reserves more than is left."""

    def __init__(self, file: Any, size: int) -> None:
        self._file = file
        self._size = size

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes."""
        left = self._size - self._file.tell()
        return bytes(self._file.read(left if size < 0 else min(size, left)))

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer."""
        return int(self._file.readinto(buffer))

    def readline(self) -> bytes:
        """Return a line."""
        return bytes(self._file.readline(2**16))

    def tell(self) -> int:
        """Return the position."""
        return int(self._file.tell())

    def seek(self, position: int, /) -> int:
        """Go to a position."""
        return int(self._file.seek(position))


def read(path: Path, *, mapped: bool = False) -> Any:
    """Return the content of a file: plain containers, plain values and tensors.

    Args:
        path: The file.
        mapped: Leave the tensors in the file, so that a model of a gigabyte is not in memory twice. The file
            must not be changed while they are used.

    Raises:
        OSError: It cannot be opened.
        InputError: It is of another kind, damaged, or contains code.
    """
    with path.open("rb") as file:
        head = file.read(64)
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        try:
            if head.startswith(b"PK"):
                whole = _whole(path, size)
                return checkpoint_pickle.resolve(_read_zip(file, whole, mapped=mapped))
            if is_old_torch(head):
                return checkpoint_pickle.resolve(read_old(Bounded(file, size), size))
            if is_safetensors(head, size):
                return _read_safetensors(path, size, mapped=mapped)
        except InputError:
            raise
        except Exception as error:  # a damaged file can raise almost any type of error
            raise unreadable(path, error) from error
    raise InputError(f"{path} begins with {head[:8]!r}" if head else f"{path} is empty")


def is_old_torch(head: bytes) -> bool:
    """Whether a file begins as torch.save wrote it before 1.6, or still writes it on request."""
    return head.startswith(b"\x80") and MAGIC in head[:32]


def is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file begins as safetensors does: the length of a JSON header, then the header."""
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size - 8


def unreadable(path: Path, error: Exception) -> InputError:
    """Return the error for a file that asks to run something, or that is damaged."""
    refused = checkpoint_pickle.refusal(error)
    if refused is None:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return InputError(f"{path} is damaged ({reason:.200}); download or copy it again")
    if refused.startswith("dnnlib.tflib"):
        return InputError(
            f"{path} was made by the TensorFlow version of StyleGAN; convert it first with "
            "legacy.py of NVlabs/stylegan2-ada-pytorch"
        )
    return InputError(
        f"{path} asks to run {refused}; only tensors and plain values are read, and nothing was run. "
        "If you trust its source, load it there and save again only its state_dict, opts and latent_avg"
    )


def _whole(path: Path, size: int) -> torch.UntypedStorage:
    """Return a file as memory that is read when it is used."""
    return cast(torch.UntypedStorage, torch.UntypedStorage.from_file(str(path), False, size))


def _read_zip(file: BinaryIO, whole: torch.UntypedStorage, *, mapped: bool) -> Any:
    """Return the content of a zip, unresolved."""
    size = whole.nbytes()
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise ValueError(
                "its members are compressed, which torch.save never does; unpack it and pack it again with: "
                "zip -0 -r FILE.pt FOLDER"
            )
        if sum(member.file_size for member in members.values()) > size:
            raise ValueError("its members claim more bytes than it has")
        data = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
        if len(data) != 1 or members[data[0]].file_size > MOST_PICKLE:
            raise ValueError(f"it has {len(data)} data.pkl, or a very large one")
        folder = data[0][: -len("data.pkl")]
        order = f"{folder}byteorder"
        if order in members and archive.read(order).strip() != b"little":
            raise ValueError("it was saved on a big-endian machine; save it on another")
        pickled = archive.read(data[0])

    storages: dict[str, torch.UntypedStorage] = {}

    def storage(kind: StorageType, key: str, numbers: int) -> Storage:
        member = members.get(f"{folder}data/{key}")
        if member is None:
            raise ValueError(f"the storage {key:.40} is missing")
        claimed = numbers * kind.dtype.itemsize
        if claimed > member.file_size:
            raise ValueError(
                f"the storage {key:.40} claims {claimed} bytes, and the file holds {member.file_size}"
            )
        if key not in storages:
            # The member's data follow its header, whose length is in the header only.
            at = member.header_offset
            names = struct.unpack("<HH", bytes(whole[at + 26 : at + 30].tolist()))
            start = at + 30 + sum(names)
            if start + member.file_size > size:
                raise ValueError(f"the storage {key:.40} ends after the file")
            inside = whole[start : start + member.file_size]
            storages[key] = inside if mapped else inside.clone()
        return Storage(kind.dtype, storages[key])

    source = Bounded(io.BytesIO(pickled), len(pickled))
    return checkpoint_pickle.load(source, checkpoint_pickle.plain_makers(), storage)


def read_bytes(data: bytes) -> Any:
    """Return the content of a file that is inside another, unresolved."""
    if data.startswith(b"PK"):
        whole = torch.frombuffer(bytearray(data), dtype=torch.uint8).untyped_storage()
        return _read_zip(io.BytesIO(data), whole, mapped=True)
    return read_old(Bounded(io.BytesIO(data), len(data)), len(data))


def read_old(source: Source, size: int) -> Any:
    """Return the content of the format before torch 1.6, unresolved; `size` is that of the file."""
    makers = checkpoint_pickle.plain_makers()
    storages: dict[str, torch.UntypedStorage] = {}

    def storage(kind: StorageType, key: str, numbers: int) -> Storage:
        claimed = numbers * kind.dtype.itemsize
        if key not in storages:
            held = sum(other.nbytes() for other in storages.values())
            if claimed + held > size:
                raise ValueError(f"its storages claim {claimed + held} bytes, and the file holds {size}")
            storages[key] = torch.UntypedStorage(claimed)
        if claimed > storages[key].nbytes():
            raise ValueError(f"the storage {key:.40} claims {claimed} bytes")
        return Storage(kind.dtype, storages[key])

    for _ in range(3):  # the magic number, the version and facts about the machine
        checkpoint_pickle.load(source, {})
    content = checkpoint_pickle.load(source, makers, storage)
    keys = checkpoint_pickle.load(source, {})
    for key in keys:
        memory = storages[str(key)]
        count = int.from_bytes(source.read(8), "little")
        data = source.read(memory.nbytes())
        if len(data) < memory.nbytes() or count > memory.nbytes():
            raise ValueError(f"the storage {key!r:.40} is incomplete")
        if data:
            flat = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            memory.copy_(flat.untyped_storage())
    if set(storages) - set(map(str, keys)):
        raise ValueError("it has no data for some of its storages")
    return content


def _read_safetensors(path: Path, size: int, *, mapped: bool) -> dict[str, Any]:
    """Return the tensors by name, and the file's own options, which are text."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MOST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(file.read(length))
    options = header.pop("__metadata__", None) or {}
    whole = _whole(path, size)
    content: dict[str, Any] = {}
    total = 0
    for name, entry in header.items():
        dtype = DTYPES.get(entry["dtype"])
        if dtype is None:
            raise InputError(f"{path}: {name:.80} has the type {entry['dtype']!r:.20}; save it as F32")
        shape, (start, end) = entry["shape"], entry["data_offsets"]
        if any(type(number) is not int or number < 0 for number in (*shape, start, end)):
            raise ValueError(f"{name:.80} has a shape or a place that is no number")
        if end - start != math.prod(shape) * dtype.itemsize or 8 + length + end > size:
            raise ValueError(f"{name:.80} of shape {shape} claims bytes that the file does not hold")
        total += end - start
        inside = whole[8 + length + start : 8 + length + end]
        aligned = (8 + length + start) % dtype.itemsize == 0
        tensor = torch.empty(0, dtype=dtype)
        content[name] = tensor.set_(inside if mapped and aligned else inside.clone()).reshape(shape)
    if total > size:
        raise ValueError("its tensors overlap")
    options.pop("format", None)
    for key in ("opts", "args"):
        if key in options:
            return {**content, "opts": options[key]}
    return {**content, "opts": options} if options else content
