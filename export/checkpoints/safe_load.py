"""Reading NVIDIA's network pickles (stylegan2-ada-pytorch) without running the code they carry.

Such a file holds each module as a dictionary {type, version, module_src, class_name, state}:
``module_src`` is Python source, which the original loader executes. Here a module becomes a
`Persistent`, a name with its state; the source stays text. The unpickler can build tensors,
NumPy values and plain containers and refuses every other name.
"""

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch
from torch import Tensor

from export.errors import CheckpointError

Makers = dict[tuple[str, str], Callable[..., Any]]


@dataclass(frozen=True)
class Persistent:
    """A module of the file: the name of its class and its state."""

    class_name: str
    state: Mapping[str, Any]

    @property
    def children(self) -> dict[str, "Persistent"]:
        """The modules inside, by name."""
        return {name: child for name, child in self.state["_modules"].items() if child is not None}

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Return every parameter and buffer of the module and those inside, by its full name."""
        own = {**self.state["_parameters"], **self.state["_buffers"]}
        found = {prefix + name: tensor for name, tensor in own.items() if tensor is not None}
        for name, child in self.children.items():
            found |= child.tensors(f"{prefix}{name}.")
        return found


def read(path: Path) -> Any:
    """Return the content of a pickle: containers, tensors, and modules as `Persistent`.

    Raises:
        CheckpointError: Damaged, or it asks for anything else to be built.
    """
    with path.open("rb") as file:
        try:
            return _Unpickler(file).load()
        except Exception as error:  # damaged pickles fail in as many ways as there are instructions
            raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """Return the error for a file that names something to run, or that is damaged."""
    found = re.search(r"GLOBAL (\S+)", str(error))  # torch's wording, and ours
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
    """Builds what `_makers` lists, and nothing else."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._makers = _makers()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._makers[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed") from None

    def persistent_load(self, pid: object) -> NoReturn:
        raise pickle.UnpicklingError("a reference to outside of the file")


class _Maker:
    """A function that a pickle may call but, unlike a plain function, not set attributes of."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setstate__(self, state: object) -> NoReturn:
        raise pickle.UnpicklingError("a state for a function")


def _makers() -> Makers:
    class EasyDict(dict[Any, Any]):
        """Their dictionary with attributes; made anew for each file, which could change the class."""

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
    """Return what builds NumPy scalars and arrays, under the names of NumPy 1 and 2."""
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
    """Return bytes that an old pickle protocol wrote as text."""
    if encoding != "latin1":  # Python looks codecs up by importing modules
        raise pickle.UnpicklingError(f"the encoding {encoding!r}")
    return text.encode("latin1")


def _storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    flat = torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)
    return flat.as_strided(size, stride, offset)  # refuses what lies outside; set_ would make it larger


def _persistent(meta: Mapping[str, Any]) -> Persistent:
    return Persistent(meta["class_name"], meta["state"])
