"""Read the weight files of losses. The user names them; nothing is downloaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from psp_rt.errors import InputError
from trainer import checkpoint_files


def read(path: str | Path, *, source: str) -> Mapping[str, Any]:
    """Return the content of a file of named tensors; `source` says where to get such a file."""
    try:
        content = checkpoint_files.read(Path(path))
    except (OSError, InputError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"cannot read {path} ({reason}); expected {source}") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not named tensors; expected {source}")
    return content


def fill(network: nn.Module, tensors: Mapping[str, Any], path: str | Path, *, source: str) -> None:
    """Copy tensors into a network; surplus ones are ignored, and batch counters may be missing."""
    for name, target in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            copy(target, tensors, name, path, source)


def refuse_surplus(network: nn.Module, tensors: Mapping[str, Any], path: str | Path, *, source: str) -> None:
    """Raise an error if a file has tensors that the network lacks: it is another network."""
    surplus = sorted(set(tensors) - set(network.state_dict()))
    if surplus:
        raise InputError(f"{path} has a tensor {surplus[0]} that is not known; expected {source}")


def copy(target: Tensor, tensors: Mapping[str, Any], name: str, path: str | Path, source: str) -> None:
    """Copy one tensor, which must exist in the same shape."""
    found = tensors.get(name)
    if not isinstance(found, Tensor):
        raise InputError(f"{path} has no tensor {name}; expected {source}")
    if found.shape != target.shape:
        raise InputError(
            f"{name} in {path} is {tuple(found.shape)}, not {tuple(target.shape)}; expected {source}"
        )
    with torch.no_grad():
        target.copy_(found)
