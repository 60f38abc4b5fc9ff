"""Find the networks in a checkpoint, however its author wrapped them.

Known wrappings, alone or inside each other:

    {state_dict: encoder.* and decoder.*}      pSp, e4e
    {g_ema: ...} or {g: ...}                   StyleGAN2 (rosinality)
    {name: state dict, ...}                    any other name, if one of them is a known network
    the state dict itself                      of a model, an encoder or a generator
    PREFIX.name for all names of a state dict  `module.`, `_orig_mod.`, `net.`, ...

A generator under NVIDIA's names (``synthesis.*``, ``mapping.*``) is found too, but not renamed here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from torch import Tensor

from psp_rt.errors import InputError
from trainer.checkpoint_tensors import Tensors, as_tensor, listed, named_tensors, unwrapped

Part = Literal["model", "encoder", "generator", "nvidia"]
DEPTH = 3  # of dictionaries inside each other
PARTS = {"encoder": "encoder", "decoder": "decoder", "generator": "decoder"}
# Networks and values that training code keeps next to the model, and that translation does not use.
NUMBERS = ("latent_avg", "conv_clamp")
UNUSED = ("discriminator", "id_loss", "lpips_loss", "moco_loss", "w_norm_loss", "mse_loss", *NUMBERS)
OPTION_KEYS = ("opts", "args", "options", "hyper_parameters", "hparams")
ENCODER_LAYERS = ("input_layer.", "body.", "styles.", "conv1.weight")
GENERATOR_LAYERS = ("conv1.conv.", "conv1.activate.", "convs.0.conv.", "to_rgb1.", "input.input")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The networks of a file, each with what precedes its names there.

    Args:
        encoder: Its tensors; empty if the file has none.
        generator: Under rosinality's names; empty if the file has none.
        nvidia: A generator under NVIDIA's names; empty if the file has none.
        alone: The generator is not part of a model's file.
        latent_avg: As stored.
        conv_clamp: As stored.
        options: As stored: opts, args, ...; None if the file has none.
        notes: What was chosen or ignored.
    """

    encoder: Tensors
    generator: Tensors
    nvidia: Tensors
    encoder_prefix: str = ""
    generator_prefix: str = ""
    alone: bool = False
    latent_avg: Tensor | None = None
    conv_clamp: Any = None
    options: Any = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Found:
    """A state dict in the file that is a known network."""

    path: str  # keys that lead to it, with dots
    prefix: str  # shared by all its names
    tensors: dict[str, Tensor]
    part: Part
    beside: tuple[str, ...] = ()  # parts of the larger module that it is in

    @property
    def start(self) -> str:
        """What precedes a tensor's name in the file."""
        return f"{self.path}{'.' if self.path else ''}{self.prefix}"


def find_networks(root: Mapping[str, Any]) -> Layout | None:
    """Return the networks of a file, or None if it has none that is known.

    Raises:
        InputError: Several networks could be meant, or a model has tensors of neither network.
    """
    found = list(_state_dicts(root))
    model = _preferred([one for one in found if one.part == "model"])
    notes: list[str] = []
    encoder: Tensors = {}
    generator: Tensors = {}
    nvidia: Tensors = {}
    encoder_start = generator_start = ""
    if model:
        encoder, generator = _split(model, notes)
        if model.beside:
            notes.append(f"left out, as they are no part of {model.start}*: {', '.join(model.beside)}")
        encoder_start = f"{model.start if model.path != 'state_dict' else model.prefix}encoder."
        generator_start = f"{model.start if model.path != 'state_dict' else model.prefix}decoder."
    if not encoder and (chosen := _preferred([one for one in found if one.part == "encoder"])):
        encoder, encoder_start = chosen.tensors, chosen.start
    if not generator and (
        chosen := _preferred([one for one in found if one.part in ("generator", "nvidia")])
    ):
        generator_start = chosen.start
        if chosen.part == "nvidia":
            nvidia = chosen.tensors
        else:
            generator = chosen.tensors
        if chosen.path in ("g", "G") or chosen.path.endswith((".g", ".G")):
            notes.append(f"the generator is {chosen.path}, as it was in training; there is no average, g_ema")
    if not (encoder or generator or nvidia):
        return None
    return Layout(
        encoder={name: tensor for name, tensor in encoder.items() if name not in UNUSED},
        generator={name: tensor for name, tensor in generator.items() if name not in UNUSED},
        nvidia=nvidia,
        encoder_prefix=encoder_start,
        generator_prefix=generator_start,
        alone=model is None and not encoder,
        latent_avg=_average(root, found),
        conv_clamp=next((level["conv_clamp"] for level in _levels(root) if "conv_clamp" in level), None),
        options=next(
            (level[key] for level in _levels(root) for key in OPTION_KEYS if level.get(key) is not None), None
        ),
        notes=tuple(notes),
    )


def _levels(root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the file's dictionary and those in it, where options and numbers may lie."""
    yield root
    for key, inner in root.items():
        if isinstance(inner, Mapping) and key not in OPTION_KEYS:
            yield inner


def _average(root: Mapping[str, Any], found: list[_Found]) -> Tensor | None:
    if root.get("latent_avg") is not None:
        return as_tensor(root["latent_avg"], "latent_avg")
    return next((one.tensors["latent_avg"] for one in found if "latent_avg" in one.tensors), None)


def _state_dicts(root: Mapping[str, Any], path: str = "", depth: int = 0) -> Iterator[_Found]:
    """Yield every state dict of a known network."""
    names = [str(name) for name, value in root.items() if isinstance(value, Tensor | np.ndarray)]
    if any(name not in UNUSED for name in names):
        prefix = shared_prefix(names)
        part = part_of([unwrapped(name).removeprefix(prefix) for name in names])
        if part:
            # Other entries may lie next to the tensors in the file itself, but not inside a state dict.
            inside = {name: value for name, value in root.items() if path or str(name) in set(names)}
            tensors = named_tensors(inside)
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
            yield _Found(path, prefix, tensors, part)
            return
        # Parts of a larger module, such as Lightning's: model.net.encoder.* beside loss.*.
        groups: dict[str, dict[str, Any]] = {}
        for key, value in root.items():
            head, dot, rest = unwrapped(str(key)).partition(".")
            if dot and depth < DEPTH and isinstance(value, Tensor | np.ndarray):
                groups.setdefault(head, {})[rest] = value
        if len(groups) > 1:
            for head, group in groups.items():
                for one in _state_dicts(group, f"{path}.{head}" if path else head, depth + 1):
                    yield replace(one, beside=(*one.beside, *sorted(groups.keys() - {head})))
            return
    if depth < DEPTH:
        for key, value in root.items():
            if isinstance(value, Mapping) and isinstance(key, str):
                yield from _state_dicts(value, f"{path}.{key}" if path else key, depth + 1)


def shared_prefix(names: list[str]) -> str:
    """Return what all names begin with before they are those of a known network."""
    rest, prefix = [unwrapped(name) for name in names], ""
    while part_of(rest) is None:
        inner = [name for name in rest if name not in UNUSED]
        heads = {name.partition(".")[0] for name in inner}
        if len(heads) != 1 or not all("." in name for name in inner):
            return ""
        head = heads.pop() + "."
        prefix += head
        rest = [name.removeprefix(head) for name in rest]
    return prefix


def part_of(names: list[str]) -> Part | None:
    """Return which network has such names."""

    def has(*starts: str) -> bool:
        return any(name.startswith(starts) for name in names)

    if has("encoder.", "decoder."):
        return "model"
    if has("synthesis."):
        return "nvidia"
    if has(*GENERATOR_LAYERS):
        return "generator"
    if has(*ENCODER_LAYERS):
        return "encoder"
    return None


def _preferred(found: list[_Found]) -> _Found | None:
    """Return the one that is meant: the average of a training run before the network in training."""
    averages = [one for one in found if "ema" in one.path.lower().replace(".", "_").split("_")]
    for some in (averages, found):
        if len(some) == 1:
            return some[0]
        if named := [one for one in some if one.path in ("state_dict", "g_ema", "G_ema")]:
            return named[0]
    if not found:
        return None
    raise InputError(
        f"it holds several networks of one kind, under {listed([one.path for one in found])}; save the one "
        "that you mean alone, as {'state_dict': ...} for a model or {'g_ema': ...} for a generator"
    )


def _split(model: _Found, notes: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of the encoder and of the generator."""
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder": {}}
    surplus, unused = [], set()
    for full_name, tensor in model.tensors.items():
        owner, _, name = full_name.partition(".")
        if owner in PARTS:
            parts[PARTS[owner]][name] = tensor
        elif owner in UNUSED:
            unused.add(owner)
        else:
            surplus.append(f"{full_name} {tuple(tensor.shape)}")
    if surplus:
        raise InputError(f"expected the tensors encoder.* and decoder.*; surplus are {listed(surplus)}")
    if left_out := sorted(unused - set(NUMBERS)):
        notes.append(f"left out, because translation does not use it: {', '.join(left_out)}")
    return parts["encoder"], parts["decoder"]
