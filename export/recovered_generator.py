"""The generator of an engine, back in the form that is trained: what its export folded is taken apart."""

from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor, nn

from export import traced
from export.graphs.networks import GeneratorGraph, MappingGraph
from export.graphs.ops import ACTIVATION_GAIN, DEMODULATION_EPSILON
from export.traced import Graph
from psp_rt import Manifest
from trainer.networks import Generator, GeneratorConfig, Noise
from trainer.networks.generator import StyledConv, ToRgb
from trainer.networks.layers import EqualLinear


def generator_of(found: Graph, mapping: Graph, manifest: Manifest) -> Generator:
    """Return the generator that an engine's graphs were traced from."""
    config = _generator_config(found, mapping, manifest)
    noise: Noise = next(kind for kind in get_args(Noise) if kind == manifest.noise)
    graph = GeneratorGraph(Generator(config), noise=noise).eval()
    traced.draw(graph)
    code = torch.zeros(2, config.num_styles, config.style_dim)
    inputs = {"codes": code, "reference": code.clone(), "weights": torch.zeros(2, config.num_styles)}
    state = traced.tensors(graph, inputs, "image", found)
    mapper = MappingGraph(Generator(config))
    traced.draw(mapper)
    styles = traced.tensors(mapper, {"z": torch.zeros(2, config.style_dim)}, "w", mapping)

    generator = Generator(config).eval().requires_grad_(False)
    generator.input.input.copy_(state["start"])
    for number, layer in enumerate(list(generator.style)[1:]):
        _set_linear(layer, styles, f"layers.{number}")
    _set_layer(generator, "conv1", 0, state)
    _set_colours(generator.to_rgb1, "to_rgb1", state)
    for number in range(len(generator.convs)):
        _set_layer(generator, f"convs.{number}", number + 1, state)
    for number, layer in enumerate(generator.to_rgbs):
        _set_colours(layer, f"to_rgbs.{number}", state)
    return generator


def _generator_config(found: Graph, mapping: Graph, manifest: Manifest) -> GeneratorConfig:
    known = found.constants
    if manifest.output.height != manifest.output.width:
        raise ValueError("its pictures are cut")
    levels = manifest.num_styles // 2 - 1
    names = ["conv1.conv.weight", *(f"convs.{2 * level + 1}.conv.weight" for level in range(levels))]
    return GeneratorConfig(
        channels=tuple(len(known[name]) for name in names),
        style_dim=manifest.style_dim,
        mapping_layers=mapping.operators.count("Gemm"),
    )


def _set_layer(generator: Generator, name: str, number: int, state: Mapping[str, Tensor]) -> None:
    """Set a styled convolution; its export divides the weight by a factor that the epsilon still shows."""
    layer = generator.get_submodule(name)
    assert isinstance(layer, StyledConv)
    _set_linear(layer.conv.modulation, state, f"{name}.affine")
    scale = (state[f"{name}.conv.epsilon"][0] * (ACTIVATION_GAIN**2 / DEMODULATION_EPSILON)).sqrt()  # [O]
    if layer.conv.up:
        weight, bias = state[f"{name}.conv.upsample.weight"].transpose(0, 1), f"{name}.conv.upsample.bias"
    else:
        weight, bias = state[f"{name}.conv.weight"], f"{name}.conv.bias"
    weight = weight / scale[:, None, None, None]
    layer.conv.weight.copy_((weight * weight[0].numel() ** 0.5)[None])
    layer.activate.bias.copy_(state[bias].flatten() / ACTIVATION_GAIN)
    if f"{name}.noise_strength" in state:
        layer.noise.weight.copy_(state[f"{name}.noise_strength"] / ACTIVATION_GAIN)
    elif f"{name}.noise_constant" in state:
        noise = state[f"{name}.noise_constant"] / ACTIVATION_GAIN
        strength = noise.square().mean().sqrt()
        layer.noise.weight.fill_(strength)
        if strength > 0:
            generator.noises[number].copy_(noise / strength)


def _set_colours(layer: nn.Module, name: str, state: Mapping[str, Tensor]) -> None:
    assert isinstance(layer, ToRgb)
    _set_linear(layer.conv.modulation, state, f"{name}.affine")
    weight = state[f"{name}.weight"]  # [1, 3, C]
    layer.conv.weight.copy_((weight * weight.shape[2] ** 0.5)[..., None, None])
    layer.bias.copy_(state[f"{name}.bias"])


def _set_linear(layer: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    assert isinstance(layer, EqualLinear)
    gain = ACTIVATION_GAIN if layer.lr_mul != 1 else 1.0  # a mapping layer took its activation's gain
    layer.weight.copy_(state[f"{name}.weight"] / (layer.scale * gain))
    layer.bias.copy_(state[f"{name}.bias"] / (layer.lr_mul * gain))
