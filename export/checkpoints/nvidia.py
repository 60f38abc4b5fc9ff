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
from export.checkpoints.tensors import Contents, GeneratorPart
from export.errors import CheckpointError
from psp_rt.errors import InputError
from trainer.checkpoint_tensors import Tensors, conv_clamp, generator_config, named_tensors
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
        found = named_tensors(network.tensors())
        _refuse_stylegan3(found)
        clamp = _check(network)
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"G_ema is not a stylegan2-ada generator ({error!r}); {SUPPORTED}") from error
    part = _part(found, clamp=clamp, prefix="G_ema ", fact="the layers of G_ema")
    return Contents(
        source=source,
        source_format="stylegan2-ada",
        generator=part,
        latent_avg=found.get("mapping.w_avg"),
        alone=True,
    )


def read_tensors(found: Tensors, *, prefix: str, clamp: Any) -> Contents:
    """Return a generator from its tensors alone, which do not say all that a network pickle says.

    Args:
        found: Its tensors under NVIDIA's names.
        prefix: What precedes each name in the file.
        clamp: The bound on its activations, as stored; None if the file does not state one.
    """
    _refuse_stylegan3(found)
    for name, tensor in found.items():
        if name.endswith("resample_filter") and not _is_binomial(tensor):
            raise CheckpointError(f"the generator's {name} is not [1, 3, 3, 1]; {SUPPORTED}")
    fact = "not stated" if clamp is None else "conv_clamp"
    return Contents(
        source="",
        source_format="stylegan2-ada",
        generator=_part(found, clamp=conv_clamp(clamp), prefix=prefix, fact=fact),
        latent_avg=found.get("mapping.w_avg"),
    )


def _refuse_stylegan3(found: Tensors) -> None:
    if any(name.startswith(("synthesis.L0_", "synthesis.input.")) for name in found):
        raise CheckpointError(
            f"the generator is a StyleGAN3, whose layers compute something else; {SUPPORTED}"
        )
    if any(name.startswith("mapping.embed") for name in found):
        raise CheckpointError(f"the generator is conditional: it has mapping.embed; {SUPPORTED}")


def _part(found: Tensors, *, clamp: float | None, prefix: str, fact: str) -> GeneratorPart:
    try:
        tensors = dict(_renamed(found))
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"its tensors are not a stylegan2-ada generator's ({error}); {SUPPORTED}"
        ) from error
    return GeneratorPart(
        config=generator_config(tensors, conv_clamp=clamp),
        tensors=tensors,
        prefix=prefix,
        facts={"conv_clamp": fact},
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
