"""Turn an engine back into a checkpoint that computes the same: ``python models/recover.py ENGINE OUTPUT``.

For users who only have the engine and want to continue training, or to train encoders for its generator.
The optimizer is lost, and so are the statistics of batch norms that were folded into a convolution: these
norms come back as ones that only add a bias, and training measures their statistics first.

To find out which weight each constant of a graph is, the same network is traced again with random weights.
Both graphs then have the same nodes in the same order, and a random constant is recognized by its values,
even if the exporter renamed or transposed it.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from export import parity
from export.checkpoints.load import load
from export.checkpoints.tensors import head_side
from export.graphs.networks import EncoderGraph, GeneratorGraph, MappingGraph
from export.graphs.ops import ACTIVATION_GAIN, DEMODULATION_EPSILON
from export.graphs.trace import trace
from psp_rt import EngineFile, InputError, Manifest, PspError
from psp_rt.files import check_apart, check_writable
from trainer import checkpoint
from trainer.checkpoint import Checkpoint
from trainer.networks import Encoder, EncoderConfig, EncoderKind, Generator, GeneratorConfig, Translation
from trainer.networks.encoders import normed_convolutions
from trainer.networks.layers import EqualLinear

EXPECTED = "expected an engine with an encoder that `python -m export` made"
State = dict[str, Tensor]


@dataclass
class Graph:
    """The operators of a graph in order, and the constant inputs of all of them by position."""

    operators: list[str] = field(default_factory=list)
    inputs: list[NDArray[Any] | None] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)  # by name
    strides: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of convolutions, by their weight


def recover_to(path: Path, output: Path) -> Checkpoint:
    """Write the model of an engine as a checkpoint.

    Raises:
        InputError: The engine has no encoder, or other graphs than this exporter writes.
        ParityError: The checkpoint does not compute what the engine computes.
    """
    check_apart(output, path)
    check_writable(output)
    found = recover(path)
    with EngineFile.open(path) as engine:
        noise = engine.manifest.noise
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "recovered.pt"
        checkpoint.save(trial, found)
        model = load(trial)
    if noise != "random":  # random pictures are never the same twice
        expected = parity.expect(parity.networks(model, noise="const"), model)
        parity.check(parity.measure(path, expected))
    checkpoint.save(output, found)
    return found


@torch.no_grad()
def recover(path: Path) -> Checkpoint:
    """Return the model of an engine, without comparing the two."""
    with EngineFile.open(path) as engine:
        manifest = engine.manifest
        if manifest.input is None:
            raise InputError(f"{path} contains a generator alone; {EXPECTED}")
        graphs = {}
        for name in ("encoder", "mapping", "generator"):
            model = onnx.load_model_from_string(engine.graph(name))
            folder = os.path.dirname(os.path.realpath(path))
            onnx.load_external_data_for_model(model, folder)  # the weights, which are inside the engine file
            graphs[name] = _read(model)
    try:
        generator = _generator(graphs["generator"], graphs["mapping"], manifest)
        encoder, average = _encoder(graphs["encoder"], manifest)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} contains unknown graphs ({error}); {EXPECTED}") from error
    return Checkpoint(
        task=manifest.task,
        input_kind=manifest.input.kind,
        labels=manifest.input.labels,
        model=Translation(encoder, generator, average).eval(),
    )


def _read(model: onnx.ModelProto) -> Graph:
    found = Graph(
        constants={tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    )
    for node in model.graph.node:
        if node.op_type in ("Cast", "Identity") and node.input[0] in found.constants:
            # A weight that is stored as FP16, or a repetition of which the exporter stored only one.
            found.constants[node.output[0]] = found.constants[node.input[0]].astype(np.float32)
            continue
        found.operators.append(node.op_type)
        found.inputs += [found.constants.get(name) for name in node.input]
        strides = [tuple(attribute.ints) for attribute in node.attribute if attribute.name == "strides"]
        if node.op_type == "Conv" and strides:
            found.strides[node.input[1]] = strides[0]
    return found


def _state(module: EncoderGraph | GeneratorGraph | MappingGraph, found: Graph) -> State | None:
    """Return the weights with which a module traces to a graph; None if it is another network's graph."""
    numbers = torch.Generator().manual_seed(0)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(0.1 + torch.rand(tensor.shape, generator=numbers))
    with tempfile.TemporaryDirectory() as folder:
        path, *_ = trace(module, module.example_inputs(), module.output, Path(folder), "random")
        random = _read(onnx.load(path))
    if random.operators != found.operators:
        return None
    names = {tensor.numpy().tobytes(): name for name, tensor in module.state_dict().items()}
    state: State = {}
    for ours, theirs in zip(random.inputs, found.inputs, strict=True):
        for form in (np.asarray, np.transpose):
            name = None if ours is None else names.get(form(ours).tobytes())
            if name is not None and theirs is not None:
                values = np.array(form(theirs), np.float32, order="C")
                state[name] = torch.from_numpy(values).reshape(module.state_dict()[name].shape)
                break
    return state


def _encoder(found: Graph, manifest: Manifest) -> tuple[Encoder, Tensor | None]:
    """Return the encoder and the latent average, by trying each kind with and without an average."""
    assert manifest.input is not None
    pyramid = any(name.startswith("encoder.styles.") for name in found.constants)
    kinds: tuple[EncoderKind, ...] = ("psp", "e4e") if pyramid else ("w", "naive_w+")
    zeros = torch.zeros(manifest.num_styles, manifest.style_dim)
    for kind, average in product(kinds, (None, zeros)):
        config = _encoder_config(found, manifest, kind)
        if config is None:
            continue
        state = _state(EncoderGraph(Encoder.create(config).eval(), average, kind=manifest.input.kind), found)
        if state is None:
            continue

        # Batch norms that were folded get the convolution's bias; linear layers lose their factor.
        encoder = Encoder.create(config)
        given = {name.removeprefix("encoder."): value for name, value in state.items()}
        names = {module: name for name, module in encoder.named_modules()}
        for convolution, norm in normed_convolutions(encoder):
            given[f"{names[norm]}.bias"] = given.pop(f"{names[convolution]}.bias")
            given[f"{names[norm]}.running_var"] = torch.full_like(norm.bias, 1 - norm.eps)
        for layer, name in names.items():
            if isinstance(layer, EqualLinear):
                given[f"{name}.weight"] = given[f"{name}.weight"] / layer.scale
        own = encoder.state_dict()
        encoder.load_state_dict(own | {name: value for name, value in given.items() if name in own})
        return encoder, state.get("latent_avg")
    raise ValueError("the encoder is not pSp, e4e, W or naive W+")


def _encoder_config(found: Graph, manifest: Manifest, kind: EncoderKind) -> EncoderConfig | None:
    """Read the sizes of an encoder from the shapes of its weights; None if it lacks the head of its kind."""
    spec, known = manifest.input, found.constants
    assert spec is not None
    widths: list[int] = []
    depths: list[int] = []
    while (name := f"encoder.body.{sum(depths)}.res_layer.3.weight") in known:
        if found.strides[name] != (1, 1):  # the first block of a stage
            widths.append(len(known[name]))
            depths.append(0)
        depths[-1] += 1
    heads = {"w": "", "naive_w+": "encoder.output_layer_2.3.bias"}
    head = heads.get(kind, "encoder.styles.0.convs.0.bias")
    if head and head not in known:
        return None
    side = head_side({name.removeprefix("encoder."): None for name in known})
    return EncoderConfig(
        kind=kind,
        num_styles=manifest.num_styles,
        input_channels=known["encoder.input_layer.0.weight"].shape[1],
        input_height=spec.height,
        input_width=spec.width,
        style_dim=manifest.style_dim,
        widths=tuple(widths),  # type: ignore[arg-type]
        depths=tuple(depths),  # type: ignore[arg-type]
        head_width=len(known[head]) if head else widths[-1],
        head_side=None if side == max(spec.height, spec.width) else side,
    )


def _generator(found: Graph, mapping: Graph, manifest: Manifest) -> Generator:
    """Return the generator, undoing what the graphs fold into their constants."""
    if manifest.output.height != manifest.output.width:
        raise ValueError("its pictures are cropped")
    layers = ["conv1", *(f"convs.{number}" for number in range(manifest.num_styles - 2))]
    config = GeneratorConfig(
        channels=tuple(len(found.constants[f"{name}.conv.weight"]) for name in layers[::2]),
        style_dim=manifest.style_dim,
        mapping_layers=mapping.operators.count("Gemm"),
    )
    generator = Generator(config).eval()
    state = _state(GeneratorGraph(Generator(config), noise=manifest.noise), found)  # type: ignore[arg-type]
    styles = _state(MappingGraph(Generator(config)), mapping)
    if state is None or styles is None:
        raise ValueError("the generator has other operators")

    generator.input.input.copy_(state["start"])
    for number, layer in enumerate(list(generator.style)[1:]):
        _set_linear(layer, styles, f"layers.{number}")
    for number, name in enumerate(layers):
        _set_convolution(generator, name, number, state)
    for name in ("to_rgb1", *(f"to_rgbs.{number}" for number in range(len(generator.to_rgbs)))):
        to_rgb: Any = generator.get_submodule(name)
        _set_linear(to_rgb.conv.modulation, state, f"{name}.affine")
        weight = state[f"{name}.weight"]  # [1, 3, C]
        to_rgb.conv.weight.copy_((weight * weight.shape[2] ** 0.5)[..., None, None])
        to_rgb.bias.copy_(state[f"{name}.bias"])
    return generator.requires_grad_(False)


def _set_convolution(generator: Generator, name: str, number: int, state: State) -> None:
    """Set a styled convolution. Its graph divides the weight by a factor that its epsilon still shows."""
    layer: Any = generator.get_submodule(name)
    _set_linear(layer.conv.modulation, state, f"{name}.affine")
    scale = (state[f"{name}.conv.epsilon"][0] * (ACTIVATION_GAIN**2 / DEMODULATION_EPSILON)).sqrt()  # [O]
    inner = f"{name}.conv.upsample" if layer.conv.up else f"{name}.conv"
    weight = state[f"{inner}.weight"].transpose(0, 1) if layer.conv.up else state[f"{inner}.weight"]
    weight = weight / scale[:, None, None, None]
    layer.conv.weight.copy_((weight * weight[0].numel() ** 0.5)[None])
    layer.activate.bias.copy_(state[f"{inner}.bias"].flatten() / ACTIVATION_GAIN)

    # Random noise keeps its strength; constant noise is the strength times the noise image.
    if f"{name}.noise_strength" in state:
        layer.noise.weight.copy_(state[f"{name}.noise_strength"] / ACTIVATION_GAIN)
    elif f"{name}.noise_constant" in state:
        noise = state[f"{name}.noise_constant"] / ACTIVATION_GAIN
        strength = noise.square().mean().sqrt()
        layer.noise.weight.fill_(strength)
        if strength > 0:
            generator.noises[number].copy_(noise / strength)


def _set_linear(layer: nn.Module, state: State, name: str) -> None:
    assert isinstance(layer, EqualLinear)
    gain = ACTIVATION_GAIN if layer.lr_mul != 1 else 1.0  # mapping layers contain their activation's gain
    layer.weight.copy_(state[f"{name}.weight"] / (layer.scale * gain))
    layer.bias.copy_(state[f"{name}.bias"] / (layer.lr_mul * gain))


def main(arguments: Sequence[str]) -> int:
    """Write the checkpoint; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine", type=Path, help="an engine with an encoder")
    parser.add_argument("output", type=Path, help="checkpoint for `python -m trainer` and `python -m export`")
    args = parser.parse_args(arguments)
    try:
        found = recover_to(args.engine, args.output)
    except PspError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    config = found.model.generator.config
    print(f"wrote {args.output}: {found.task}, {config.size} pixels, {config.num_styles} styles")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
