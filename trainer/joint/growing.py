"""Let a run begin with the networks of a smaller one.

The larger generator makes the pictures of the smaller one, upsampled, until it learns more: the colours of
its new layers are zero. A head for a new row begins as the last one. Heads of fewer channels keep the
strongest, since a file that ships has a limit.
"""

import re
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

State = Mapping[str, Tensor]

NEW_LAYERS = ("convs.", "to_rgbs.", "noises.")


def generator_state(found: State, wanted: State) -> dict[str, Tensor]:
    """Return the state of a generator, with the layers of `wanted` that it does not have."""
    new = {name: value for name, value in wanted.items() if name not in found and name.startswith(NEW_LAYERS)}
    for name, value in new.items():
        if re.fullmatch(r"to_rgbs\.\d+\.conv\.weight", name):
            new[name] = torch.zeros_like(value)
    return {**found, **new}


def encoder_state(found: State, wanted: State) -> dict[str, Tensor]:
    """Return the state of an encoder, with as many heads as `wanted` has, and as narrow."""
    rows, last = _rows(wanted), max(_rows(found), default=0)
    state = {name: value for name, value in found.items() if not name.startswith("styles.")}
    for row in rows:
        head = _head(found, min(row, last))
        narrowed = _narrowed(head, _head(wanted, row))
        state |= {f"styles.{row}.{name}": value for name, value in narrowed.items()}
    return state


def _rows(state: State) -> list[int]:
    return sorted({_number(name) for name in state if name.startswith("styles.")})


def _head(state: State, row: int) -> dict[str, Tensor]:
    prefix = f"styles.{row}."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _narrowed(head: State, wanted: State) -> dict[str, Tensor]:
    """Return a head without its weakest channels: those that least reach the layer behind them."""
    layers = sorted((name for name in head if re.fullmatch(r"convs\.\d+\.weight", name)), key=_number)
    narrow, kept = dict(head), torch.arange(head[layers[0]].shape[1])
    for layer, following in pairwise([*layers, "linear.weight"]):
        weight = head[layer][:, kept]
        reach = head[following].transpose(0, 1).flatten(1).norm(dim=1)
        strength = weight.flatten(1).norm(dim=1) * reach  # [O]
        count = min(len(strength), len(wanted.get(layer, strength)))
        kept = strength.topk(count).indices.sort().values
        bias = layer.replace("weight", "bias")
        narrow |= {layer: weight[kept], bias: head[bias][kept]}
    linear = head["linear.weight"]
    # A factor 1 / sqrt(inputs) is applied at run time.
    narrow["linear.weight"] = linear[:, kept] * (len(kept) / linear.shape[1]) ** 0.5
    return narrow


def _number(name: str) -> int:
    return int(name.split(".")[1])
