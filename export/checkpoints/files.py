"""Reading checkpoint files without running anything in them.

A ``.pt`` file is a pickle, and a pickle may name any function to be called. Here the names are
limited to tensors, plain containers and the few plain values that training code leaves among its
options; any other name is an error that says it.
"""

import argparse
import hashlib
import pathlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.checkpoints import safe_load as nvidia_pickle
from export.errors import CheckpointError

KNOWN_FORMATS = (
    "pSp or e4e .pt {state_dict, opts, latent_avg}; StyleGAN2 .pt {g_ema} (rosinality); "
    "stylegan2-ada .pkl {G_ema} (NVIDIA); a checkpoint of this project's trainer"
)
OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6
MISTAKES = {
    b"ftrt": "a TensorRT plan; give the checkpoint that it was made from",
    b"\x08": "an ONNX model; give the checkpoint that it was made from",
    b"<": "a web page, not a checkpoint (often a download that asked for confirmation); download it again",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; fetch it with: git lfs pull",
}


def read(path: Path) -> Any:
    """Return the content of a checkpoint file: plain containers and tensors.

    Tensors of a current ``.pt`` stay in the file until they are used, so that a model of a
    gigabyte is not held twice.

    Raises:
        CheckpointError: No such file, another kind of file, a damaged one, or one that carries code.
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
        return nvidia_pickle.read(path)
    for start, what in MISTAKES.items():
        if head.lstrip().startswith(start):
            raise CheckpointError(f"{path} is {what}")
    found = f"begins with {head[:8]!r}" if head else "is empty"
    raise CheckpointError(f"{path} is no checkpoint: it {found}; known are: {KNOWN_FORMATS}")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_zip(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is incomplete: its end is missing; download or copy it again")
    with zipfile.ZipFile(path) as archive:
        names = {name.rsplit("/", 1)[-1] for name in archive.namelist()}
    if "manifest.json" in names:
        raise CheckpointError(
            f"{path} is an engine file already; use it with: psp-rt run {path.name} INPUT, or get "
            f"a checkpoint back with: python -m export.recover {path.name} {path.stem}.pt"
        )
    if "constants.pkl" in names:
        raise CheckpointError(f"{path} is a TorchScript program; give the checkpoint that it was made from")
    if "data.pkl" not in names:
        raise CheckpointError(f"{path} is a zip without a checkpoint in it; known are: {KNOWN_FORMATS}")


def _load_torch(path: Path, *, mmap: bool) -> Any:
    try:
        with torch.serialization.safe_globals(_plain_values()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch has no common error for a file that is not its own
        raise nvidia_pickle.unreadable(path, error) from error


def _plain_values() -> list[Any]:
    """Return what options may hold beyond the containers that torch allows.

    torch goes by the name of each, and NumPy and Python have moved some between versions.
    """
    makers = [_under(name, make) for name, make in nvidia_pickle.numpy_makers().items()]
    for system in ("Posix", "Windows", "PurePosix", "PureWindows"):
        makers += [
            _under((module, f"{system}Path"), pathlib.PurePath) for module in ("pathlib", "pathlib._local")
        ]
    dtypes = {type(np.dtype(code)) for code in "?bBhHiIlLqQefdSU"}
    return [argparse.Namespace, *dtypes, *makers]


def _under(full_name: tuple[str, str], make: Callable[..., Any]) -> Callable[..., Any]:
    """Return a builder under the name that a pickle has for it."""
    if isinstance(make, type) and (make.__module__, make.__qualname__) == full_name:
        return make

    def maker(*args: Any) -> Any:
        return make(*args)

    maker.__module__, maker.__name__ = full_name
    maker.__qualname__ = maker.__name__
    return maker
