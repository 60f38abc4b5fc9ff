"""Tensors by name, and modules made of them exactly."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from export.errors import CheckpointError

Tensors = Mapping[str, Tensor]
Network = TypeVar("Network", bound=nn.Module)
SHOWN = 8


def as_tensor(value: object, name: str) -> Tensor:
    """Return a value of a file that should be a tensor."""
    is_numbers = isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
    tensor = torch.from_numpy(value) if is_numbers else value
    if not isinstance(tensor, Tensor) or tensor.is_complex() or tensor.layout is not torch.strided:
        raise CheckpointError(f"{name} is a {type(value).__name__}; expected a dense tensor of numbers")
    if tensor.is_quantized or tensor.is_meta:
        raise CheckpointError(f"{name} is a quantised tensor, or one without its numbers; save it as float32")
    return tensor.detach()


def as_tensors(values: object) -> dict[str, Tensor]:
    """Return a state dict, without the ``module.`` that `DataParallel` puts into the names."""
    if not isinstance(values, Mapping):
        raise CheckpointError(f"expected tensors by name, found a {type(values).__name__}")
    return {
        ".".join(part for part in str(name).split(".") if part != "module"): as_tensor(value, str(name))
        for name, value in values.items()
    }


def shape(tensors: Tensors, name: str, *, axes: int) -> tuple[int, ...]:
    """Return the shape of a tensor that the architecture is read from."""
    if name not in tensors:
        raise CheckpointError(f"the tensor {name} is missing; without it the architecture is unknown")
    found = tuple(tensors[name].shape)
    if len(found) != axes or 0 in found:
        raise CheckpointError(
            f"the tensor {name} has shape {found}; expected {axes} axes, none of them empty"
        )
    return found


def count(tensors: Tensors, start: str) -> int:
    """Return one more than the highest number that follows ``start`` in the names.

    >>> count({"convs.0.weight": ..., "convs.11.weight": ...}, "convs.")
    12
    """
    numbers = [name[len(start) :].split(".")[0] for name in tensors if name.startswith(start)]
    sane = [int(number) for number in numbers if number.isdecimal() and len(number) <= 2]
    return max(sane, default=-1) + 1  # a hostile number beyond that becomes a surplus tensor


def build(create: Callable[[], Network], tensors: Tensors, *, prefix: str) -> Network:
    """Return a network in evaluation mode that holds these tensors, as FP32 and without a copy.

    Raises:
        CheckpointError: A tensor is missing, surplus, misshapen or not finite; it is named with
            ``prefix``, as in the file.
    """
    try:
        with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
            network = create()
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"it describes a network of impossible sizes: {error}") from error
    expected = network.state_dict()
    given = dict(tensors)
    for name in expected:
        if name.endswith("num_batches_tracked"):  # absent from old files; only training reads it
            given.setdefault(name, torch.zeros((), dtype=torch.long))
    _check_names_and_shapes(expected, given, prefix=prefix)
    given = {name: given[name].to(like.dtype).contiguous() for name, like in expected.items()}
    check_finite(given, prefix=prefix)
    network.load_state_dict(given, assign=True)
    return network.eval().requires_grad_(False)


def check_finite(tensors: Tensors, *, prefix: str) -> None:
    """Refuse tensors that hold NaN or infinity."""
    broken = [prefix + name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"NaN or infinity in {listed(broken)}; the training that made it diverged, "
            "use an earlier checkpoint"
        )


def _check_names_and_shapes(expected: Tensors, given: Tensors, *, prefix: str) -> None:
    problems = [
        f"{prefix}{name} is missing, expected {tuple(like.shape)}"
        for name, like in expected.items()
        if name not in given
    ]
    for name, tensor in given.items():
        if name not in expected:
            problems.append(f"{prefix}{name} {tuple(tensor.shape)} is surplus")
        elif tensor.shape != expected[name].shape:
            found, wanted = tuple(tensor.shape), tuple(expected[name].shape)
            problems.append(f"{prefix}{name} has shape {found}, expected {wanted}")
    if problems:
        raise CheckpointError(f"it does not fit the architecture that it seems to have: {listed(problems)}")


def listed(items: list[str]) -> str:
    """Return the first items as text, and how many more there are."""
    more = f"; and {len(items) - SHOWN} more ({len(items)} in all)" if len(items) > SHOWN else ""
    return "; ".join(items[:SHOWN]) + more
