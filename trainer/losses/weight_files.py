"""Reading the files of weights that losses need. The user names them; nothing is downloaded."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from psp_rt.errors import InputError


def read(path: str | Path, *, source: str) -> Mapping[str, Any]:
    """Return what a file of named tensors holds; `source` says where such a file comes from."""
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises a dozen kinds for a file that is none of its own
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"cannot read {path} ({reason}); expected {source}") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not named tensors; expected {source}")
    return content


def fill(network: nn.Module, tensors: Mapping[str, Any], path: str | Path, *, source: str) -> None:
    """Copy tensors into a network; surplus ones are left, counters of batches need not be there."""
    for name, target in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            copy(target, tensors, name, path, source)


def refuse_surplus(network: nn.Module, tensors: Mapping[str, Any], path: str | Path, *, source: str) -> None:
    """Refuse a file that holds more than a network has: it would be another network."""
    surplus = sorted(set(tensors) - set(network.state_dict()))
    if surplus:
        raise InputError(f"{path} has a tensor {surplus[0]} that is not known; expected {source}")


def sha256(path: str | Path) -> str:
    """Return the hash of a file, which tells whether two runs used the same one."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def copy(target: Tensor, tensors: Mapping[str, Any], name: str, path: str | Path, source: str) -> None:
    """Copy one tensor, which must be there in the same shape."""
    found = tensors.get(name)
    if not isinstance(found, Tensor):
        raise InputError(f"{path} has no tensor {name}; expected {source}")
    if found.shape != target.shape:
        raise InputError(
            f"{name} in {path} is {tuple(found.shape)}, not {tuple(target.shape)}; expected {source}"
        )
    with torch.no_grad():
        target.copy_(found)
