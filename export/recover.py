"""Turn an engine back into a checkpoint: ``python -m export.recover sketch.engine sketch.pt``.

For who has a model as an engine alone and wants to train on, or to train encoders for its generator. The
checkpoint computes what the engine does, which is checked. What an engine does not hold stays lost: the
optimiser, and the statistics of batch norms that were folded into the convolutions before them. Those norms
come back as ones that only add a bias; training that starts from such a file measures statistics first.
"""

import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import click
import torch
from torch import Tensor

from export import parity, traced
from export.checkpoints import load as checkpoints
from export.graphs.networks import EncoderGraph
from export.recovered_generator import generator_of
from export.traced import Graph, OtherOperators
from psp_rt import EngineFile, Manifest
from psp_rt.cli.group import Command
from psp_rt.errors import InputError
from psp_rt.files import check_apart, check_writable
from trainer import checkpoint
from trainer.checkpoint import Checkpoint
from trainer.networks import (
    Encoder,
    EncoderConfig,
    EncoderKind,
    Translation,
)
from trainer.networks.encoders import normed_convolutions
from trainer.networks.layers import EqualLinear

File = click.Path(path_type=Path)
EXPECTED = "expected an engine with an encoder that `python -m export` made"


@click.command(cls=Command)
@click.argument("engine", type=File)
@click.argument("output", type=File)
def main(engine: Path, output: Path) -> None:
    """Write the model of ENGINE into OUTPUT, a checkpoint for the trainer and for `python -m export`."""
    check_apart(output, engine)
    check_writable(output)
    found = recover(engine)
    check(found, engine)
    checkpoint.save(output, found)
    config = found.model.generator.config
    click.echo(f"wrote {output}: {found.task}, {config.size} pixels, {config.num_styles} styles")


def recover(path: Path) -> Checkpoint:
    """Return the model of an engine.

    Raises:
        FormatError: It is no usable engine.
        InputError: It has no encoder, or other graphs than this exporter makes.
    """
    with EngineFile.open(path) as engine:
        manifest = engine.manifest
        if manifest.input is None:
            raise InputError(f"{path} holds a generator alone; {EXPECTED}")
        encoder, mapping, generator = (
            traced.read(engine, name) for name in ("encoder", "mapping", "generator")
        )
    try:
        network = generator_of(generator, mapping, manifest)
        encoding, average = _encoder(encoder, manifest)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} has graphs that are not known ({error}); {EXPECTED}") from error
    return Checkpoint(
        task=manifest.task,
        input_kind=manifest.input.kind,
        labels=manifest.input.labels,
        model=Translation(encoding, network, average).eval(),
    )


def check(found: Checkpoint, engine: Path) -> None:
    """Refuse a checkpoint that does not compute what its engine does.

    Raises:
        ParityError: It does not.
    """
    with EngineFile.open(engine) as file:
        noise = file.manifest.noise
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recovered.pt"
        checkpoint.save(path, found)
        model = checkpoints.load(path)
    if noise != "random":  # whose pictures are never the same twice
        figures = parity.measure(engine, parity.expect(parity.networks(model, noise="const"), model))
        parity.check(figures)


def _encoder(found: Graph, manifest: Manifest) -> tuple[Encoder, Tensor | None]:
    """Return the encoder and the latent average; which kind it is, and whether it has one, is tried out."""
    spec = manifest.input
    assert spec is not None
    image = torch.zeros(2, spec.height, spec.width, spec.channels, dtype=torch.uint8)
    for kind in _kinds(found):
        config = _encoder_config(found, manifest, kind)
        for average in (None, torch.zeros(manifest.num_styles, manifest.style_dim)):
            graph = EncoderGraph(Encoder.create(config).eval(), average, kind=spec.kind)
            traced.draw(graph)
            with suppress(OtherOperators):
                state = traced.tensors(graph, {"image": image}, "codes", found)
                return _as_trained(Encoder.create(config), state), state.get("latent_avg")
    raise OtherOperators("the encoder is none of pSp, e4e, W and naive W+")


def _as_trained(encoder: Encoder, state: Mapping[str, Tensor]) -> Encoder:
    """Load what a trace holds: folded batch norms get its biases, and linear layers lose their factors."""
    own = encoder.state_dict()
    given = {name.removeprefix("encoder."): value for name, value in state.items()}
    for convolution, norm in normed_convolutions(encoder):
        name = next(name for name, module in encoder.named_modules() if module is norm)
        before = next(name for name, module in encoder.named_modules() if module is convolution)
        given |= {
            f"{name}.weight": torch.ones_like(norm.bias),
            f"{name}.bias": given.pop(f"{before}.bias"),
            f"{name}.running_mean": torch.zeros_like(norm.bias),
            f"{name}.running_var": torch.full_like(norm.bias, 1 - norm.eps),
        }
    for name, module in encoder.named_modules():
        if isinstance(module, EqualLinear):
            given[f"{name}.weight"] = given[f"{name}.weight"] / module.scale
    kept = {name: value for name, value in given.items() if name in own}
    counts = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
    encoder.load_state_dict(kept | counts)
    return encoder


def _kinds(found: Graph) -> tuple[EncoderKind, ...]:
    if any(name.startswith("encoder.styles.") for name in found.constants):
        return "psp", "e4e"
    return "w", "naive_w+"


def _encoder_config(found: Graph, manifest: Manifest, kind: EncoderKind) -> EncoderConfig:
    """Read the sizes of an encoder from the shapes of its weights."""
    spec, known = manifest.input, found.constants
    assert spec is not None
    widths: list[int] = []
    depths: list[int] = []
    for block in range(len(known)):
        name = f"encoder.body.{block}.res_layer.3.weight"
        if name not in known:
            break
        if found.strides[name] != (1, 1):  # the first block of a stage
            widths.append(len(known[name]))
            depths.append(0)
        depths[-1] += 1
    head_width = {"w": widths[-1]}.get(kind)
    if head_width is None:
        bias = "encoder.styles.0.convs.0.bias" if kind in ("psp", "e4e") else "encoder.output_layer_2.3.bias"
        head_width = len(known[bias])
    return EncoderConfig(
        kind=kind,
        num_styles=manifest.num_styles,
        input_channels=known["encoder.input_layer.0.weight"].shape[1],
        input_height=spec.height,
        input_width=spec.width,
        style_dim=manifest.style_dim,
        widths=tuple(widths),  # type: ignore[arg-type]
        depths=tuple(depths),  # type: ignore[arg-type]
        head_width=head_width,
    )


if __name__ == "__main__":
    sys.exit(main())
