"""Read checkpoint files without running any code that they contain.

A ``.pt`` file and a network pickle are both pickles, and a pickle may name any function to be called.
Here the names are limited to tensors, plain containers and the few plain values that training code
leaves among its options. Any other name is an error that shows it.

NVIDIA's network pickles (stylegan2-ada-pytorch) store each module as a dictionary {type, version,
module_src, class_name, state}. ``module_src`` is Python source that the original loader executes. Here
a module becomes a `Persistent`, its class name with its state, and the source stays text.
"""

import argparse
import io
import pathlib
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch
from torch import Tensor

from export.errors import CheckpointError

KNOWN_FORMATS = (
    "pSp or e4e .pt {state_dict, opts, latent_avg}; StyleGAN2 .pt {g_ema} (rosinality); "
    "stylegan2-ada .pkl {G_ema} (NVIDIA); a checkpoint of this project's trainer"
)
OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6
# Files that users confuse with checkpoints, by their first bytes.
MISTAKES = {
    b"ftrt": "a TensorRT plan; give the checkpoint that it was made from",
    b"\x08": "an ONNX model; give the checkpoint that it was made from",
    b"<": "a web page, not a checkpoint (often a download that asked for confirmation); download it again",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; fetch it with: git lfs pull",
}


def read(path: Path) -> Any:
    """Return the content of a checkpoint file: plain containers and tensors.

    Tensors of a current ``.pt`` file are mapped, so that a model of a gigabyte is not in memory twice.

    Raises:
        CheckpointError: The file is missing, of another kind, damaged, or contains code.
    """
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder; give the checkpoint file in it")
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error.strerror}") from error
    if head.startswith(b"PK"):
        _check_zip(path)
        return _load_torch(path, mmap=True)
    if head.startswith(OLD_TORCH):
        return _load_torch(path, mmap=False)
    if head.startswith(b"\x80"):
        return read_pickle(path)
    for start, what in MISTAKES.items():
        if head.lstrip().startswith(start):
            raise CheckpointError(f"{path} is {what}")
    found = f"begins with {head[:8]!r}" if head else "is empty"
    raise CheckpointError(f"{path} is not a checkpoint: it {found}; supported formats: {KNOWN_FORMATS}")


def _check_zip(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is incomplete: its end is missing; download or copy it again")
    with zipfile.ZipFile(path) as archive:
        names = {name.rsplit("/", 1)[-1] for name in archive.namelist()}
    if "manifest.json" in names:
        raise CheckpointError(
            f"{path} is already an engine file; use it with: psp-rt run {path.name} INPUT, or get "
            f"a checkpoint back with: python -m export recover {path.name} {path.stem}.pt"
        )
    if "constants.pkl" in names:
        raise CheckpointError(f"{path} is a TorchScript program; give the checkpoint that it was made from")
    if "data.pkl" not in names:
        raise CheckpointError(
            f"{path} is a zip without a checkpoint in it; supported formats: {KNOWN_FORMATS}"
        )


def _load_torch(path: Path, *, mmap: bool) -> Any:
    try:
        with torch.serialization.safe_globals(_plain_values()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch raises many types for files that it did not write
        raise unreadable(path, error) from error


def _plain_values() -> list[Any]:
    """Return what options may contain in addition to the containers that torch allows.

    torch compares names, and NumPy and Python have moved some of these between versions.
    """
    makers = [_under(name, make) for name, make in numpy_makers().items()]
    for system in ("Posix", "Windows", "PurePosix", "PureWindows"):
        makers += [
            _under((module, f"{system}Path"), pathlib.PurePath) for module in ("pathlib", "pathlib._local")
        ]
    dtypes = {type(np.dtype(code)) for code in "?bBhHiIlLqQefdSU"}
    return [argparse.Namespace, *dtypes, *makers]


def _under(full_name: tuple[str, str], make: Callable[..., Any]) -> Callable[..., Any]:
    """Return a builder under the name that a pickle uses for it."""
    if isinstance(make, type) and (make.__module__, make.__qualname__) == full_name:
        return make

    def maker(*args: Any) -> Any:
        return make(*args)

    maker.__module__, maker.__name__ = full_name
    maker.__qualname__ = maker.__name__
    return maker


Makers = dict[tuple[str, str], Callable[..., Any]]


@dataclass(frozen=True)
class Persistent:
    """A module in the file: its class name and its state."""

    class_name: str
    state: Mapping[str, Any]

    @property
    def children(self) -> dict[str, "Persistent"]:
        """The modules inside, by name."""
        return {name: child for name, child in self.state["_modules"].items() if child is not None}

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Return every parameter and buffer of the module and its children, by full name."""
        own = {**self.state["_parameters"], **self.state["_buffers"]}
        found = {prefix + name: tensor for name, tensor in own.items() if tensor is not None}
        for name, child in self.children.items():
            found |= child.tensors(f"{prefix}{name}.")
        return found


def read_pickle(path: Path) -> Any:
    """Return the content of a network pickle: containers, tensors, and modules as `Persistent`.

    Raises:
        CheckpointError: The file is damaged, or it asks for anything else to be built.
    """
    with path.open("rb") as file:
        try:
            return _Unpickler(file).load()
        except Exception as error:  # a damaged pickle can raise almost any type of error
            raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """Return the error for a file that asks to run something, or that is damaged."""
    found = re.search(r"GLOBAL (\S+)", str(error))  # torch words it like this, and so does _Unpickler
    if not found:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return CheckpointError(f"{path} is damaged ({reason}); download or copy it again")
    refused = found[1]
    if refused.startswith("dnnlib.tflib"):
        return CheckpointError(
            f"{path} was made by the TensorFlow version of StyleGAN; convert it first with "
            "legacy.py of NVlabs/stylegan2-ada-pytorch"
        )
    return CheckpointError(
        f"{path} asks to run {refused}; only tensors and plain values are read, and nothing was run. "
        "If you trust its source, load it there and save again only its state_dict, opts and latent_avg"
    )


class _Unpickler(pickle.Unpickler):
    """Builds what `_makers` lists and refuses everything else."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._makers = _makers()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._makers[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed") from None

    def persistent_load(self, pid: object) -> NoReturn:
        raise pickle.UnpicklingError("a reference to something outside of the file")


class _Maker:
    """A function that a pickle may call. Unlike on a plain function, it cannot set attributes on it."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setstate__(self, state: object) -> NoReturn:
        raise pickle.UnpicklingError("a state for a function")


def _makers() -> Makers:
    class EasyDict(dict[Any, Any]):
        """Their dictionary with attributes. A new class for each file, because a pickle can change it."""

    makers: Makers = {
        ("collections", "OrderedDict"): OrderedDict,
        ("builtins", "set"): set,
        ("__builtin__", "set"): set,
        ("torch", "Size"): torch.Size,
        ("torch.storage", "_load_from_bytes"): _Maker(_storage),
        ("torch._utils", "_rebuild_tensor_v2"): _Maker(_tensor),
        ("torch._utils", "_rebuild_parameter"): _Maker(lambda tensor, *_: tensor),
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Maker(_persistent),
        ("dnnlib", "EasyDict"): EasyDict,
        ("dnnlib.util", "EasyDict"): EasyDict,
    }
    return makers | numpy_makers()


def numpy_makers() -> Makers:
    """Return the builders of NumPy scalars and arrays, under the names of NumPy 1 and 2."""
    makers: Makers = {
        ("numpy", "dtype"): np.dtype,
        ("numpy", "ndarray"): np.ndarray,
        ("_codecs", "encode"): _Maker(_encode),
    }
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        makers[module, "scalar"] = _Maker(lambda dtype, data: np.frombuffer(data, dtype)[0].item())
        makers[module, "_reconstruct"] = _Maker(
            lambda kind, shape, _: np.ndarray.__new__(np.ndarray, shape, "b")
        )
    return makers


def _encode(text: str, encoding: str) -> bytes:
    """Return bytes that an old pickle protocol stores as text."""
    if encoding != "latin1":  # looking up another codec may import a module
        raise pickle.UnpicklingError(f"the encoding {encoding!r}")
    return text.encode("latin1")


def _storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    flat = torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)
    # as_strided refuses what lies outside of the storage; set_ would enlarge the storage.
    return flat.as_strided(size, stride, offset)


def _persistent(meta: Mapping[str, Any]) -> Persistent:
    return Persistent(meta["class_name"], meta["state"])
