"""NVIDIA's stylegan2-ada generators, under this project's names.

Their layers are those of the public StyleGAN2 under other names; only the FIR filter is stored
without its upsampling gain of 4. Sizes are read from the tensors. Generators that compute something
else (conditions, other architectures, other filters) are refused.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from export.checkpoints.safe_load import Persistent
from export.checkpoints.tensors import Contents, GeneratorPart, as_tensors, generator_config
from export.errors import CheckpointError
from trainer.networks.layers import binomial_kernel

GAIN = 4  # of the upsampling FIR filter
LEARNING_RATE = 0.01  # of the mapping network, whose layers are scaled by it at run time
SUPPORTED = (
    "supported are unconditional stylegan2-ada generators with skip connections, as NVIDIA's configs make"
)


def read(root: Mapping[str, Any], source: str) -> Contents:
    """Return the averaged generator of a network pickle."""
    network = root["G_ema"]
    if not isinstance(network, Persistent):
        raise CheckpointError(f"G_ema is a {type(network).__name__}; expected a network; {SUPPORTED}")
    try:
        conv_clamp = _check(network)
        found = as_tensors(network.tensors())
        tensors = dict(_renamed(found))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"G_ema is not a stylegan2-ada generator ({error!r}); {SUPPORTED}") from error
    return Contents(
        source=source,
        source_format="stylegan2-ada",
        generator=GeneratorPart(
            config=generator_config(tensors, conv_clamp=conv_clamp), tensors=tensors, prefix="G_ema "
        ),
        latent_avg=found.get("mapping.w_avg"),
    )


def _check(network: Persistent) -> float | None:
    """Check what the tensors do not show, and return the bound on the activations."""
    mapping, synthesis = network.children["mapping"], network.children["synthesis"]
    blocks = list(synthesis.children.values())
    layers = [layer for block in blocks for layer in block.children.values()]
    convolutions = [layer for layer in layers if "activation" in layer.state]
    dense = [layer for name, layer in mapping.children.items() if name.startswith("fc")]
    clamps = {layer.state["conv_clamp"] for layer in layers}
    filters = [block.state["_buffers"]["resample_filter"] for block in (*blocks, *convolutions)]
    expected = {
        "c_dim (classes)": ({network.state["c_dim"]}, 0),
        "z_dim": ({network.state["z_dim"]}, network.state["w_dim"]),
        "img_channels": ({network.state["img_channels"]}, 3),
        "architecture": ({block.state["architecture"] for block in blocks}, "skip"),
        "activation": ({layer.state["activation"] for layer in (*convolutions, *dense)}, "lrelu"),
        "use_noise": ({layer.state["use_noise"] for layer in convolutions}, True),
        "lr_multiplier": ({round(layer.state["bias_gain"], 9) for layer in dense}, LEARNING_RATE),
        "weight_gain": ({_relative_gain(layer) for layer in dense}, LEARNING_RATE),
        "resample_filter [1, 3, 3, 1]": ({_is_binomial(taps) for taps in filters}, True),
        "conv_clamp of all layers": (clamps, next(iter(clamps))),
    }
    for name, (found, wanted) in expected.items():
        if found - {wanted}:
            shown = sorted(map(repr, found))
            raise CheckpointError(
                f"the generator's {name} is {' and '.join(shown)}, expected {wanted!r}; {SUPPORTED}"
            )
    clamp = next(iter(clamps))
    return None if clamp is None else float(clamp)


def _relative_gain(layer: Persistent) -> float:
    inputs: int = layer.state["_parameters"]["weight"].shape[1]
    return round(float(layer.state["weight_gain"]) * math.sqrt(inputs), 6)


def _is_binomial(taps: Tensor) -> bool:
    return taps.shape == (4, 4) and torch.allclose(taps.float() * GAIN, binomial_kernel(), atol=1e-6)


def _renamed(found: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor under our name and in our shape; unknown ones keep theirs and become surplus."""
    for name, tensor in found.items():
        part, _, rest = name.partition(".")
        layer, _, leaf = rest.partition(".")
        if name == "mapping.w_avg":
            continue
        if part == "mapping" and layer.startswith("fc"):
            yield f"style.{int(layer[2:]) + 1}.{leaf}", tensor
        elif name == "synthesis.b4.const":
            yield "input.input", tensor[None]
        elif part == "synthesis" and layer.startswith("b"):
            yield from _renamed_in_block(int(layer[1:]), leaf, tensor)
        else:
            yield name, tensor


def _renamed_in_block(side: int, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Rename a tensor of the block whose pictures have ``side`` pixels."""
    block = side.bit_length() - 4  # 0 at 8 pixels, -1 at 4
    layer, _, leaf = name.partition(".")
    if name == "resample_filter":
        if side > 4:
            yield f"to_rgbs.{block}.upsample.kernel", tensor * GAIN
    elif layer == "torgb":
        yield _renamed_in_layer("to_rgb1" if side == 4 else f"to_rgbs.{block}", leaf, tensor, bias="bias")
    elif name == "conv0.resample_filter":
        yield f"convs.{2 * block}.conv.blur.kernel", tensor * GAIN
    elif leaf == "noise_const":
        yield f"noises.noise_{2 * block + 1 + int(layer[4:])}", tensor[None, None]
    elif leaf != "resample_filter":  # conv1 has one too, but does not resample
        target = "conv1" if side == 4 else f"convs.{2 * block + int(layer[4:])}"
        yield _renamed_in_layer(target, leaf, tensor, bias="activate.bias")


def _renamed_in_layer(layer: str, leaf: str, tensor: Tensor, *, bias: str) -> tuple[str, Tensor]:
    if leaf == "weight":
        return f"{layer}.conv.weight", tensor[None]
    if leaf == "bias":
        return f"{layer}.{bias}", tensor if bias == "activate.bias" else tensor.reshape(1, -1, 1, 1)
    if leaf == "noise_strength":
        return f"{layer}.noise.weight", tensor.reshape(1)
    return f"{layer}.conv.{leaf.replace('affine', 'modulation')}", tensor
