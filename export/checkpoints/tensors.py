"""The tensors of a checkpoint, the parts that every format is read into, and the sizes in their shapes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from export.errors import CheckpointError
from psp_rt.engine import InputSpec
from trainer.networks import Encoder, EncoderConfig, EncoderKind, Generator, GeneratorConfig

Tensors = Mapping[str, Tensor]
Network = TypeVar("Network", bound=nn.Module)
SHOWN = 8  # problems in one message
OFFICIAL_DEPTHS = (3, 4, 14, 3)
SIDE = 256  # pixels; the input of every official model


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model ready for export: FP32, in evaluation mode.

    Args:
        encoder: None for a generator alone.
        latent_avg: Added to every code, [L, D]; None for a model trained without one.
        input: What the encoder takes; None without an encoder.
        output_rows: The rows of the picture to keep, (first, after the last); None for all.
        source_format: "psp", "e4e", "rosinality", "stylegan2-ada" or "psp_rt.trainer".
        provenance: Where the model comes from, for the manifest.
        alignment: How pictures of its data set are cut, "ffhq" or "none"; None if that is unknown.
    """

    encoder: Encoder | None
    generator: Generator
    latent_avg: Tensor | None
    input: InputSpec | None
    output_rows: tuple[int, int] | None
    task: str
    source_format: str
    provenance: dict[str, str]
    alignment: str | None = None


def as_tensor(value: object, name: str) -> Tensor:
    """Return a value from a file as a tensor, or refuse it."""
    is_numbers = isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
    tensor = torch.from_numpy(value) if is_numbers else value
    if not isinstance(tensor, Tensor) or tensor.is_complex() or tensor.layout is not torch.strided:
        raise CheckpointError(f"{name} is a {type(value).__name__}; expected a dense tensor of numbers")
    if tensor.is_quantized or tensor.is_meta:
        raise CheckpointError(
            f"{name} is a quantized tensor or a meta tensor without values; save it as float32"
        )
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
    """Return the shape of a tensor that reveals the architecture."""
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
    # A hostile file may count to a billion. Longer numbers are left out here and refused later as surplus.
    plausible = [int(number) for number in numbers if number.isdecimal() and len(number) <= 2]
    return max(plausible, default=-1) + 1


def build(create: Callable[[], Network], tensors: Tensors, *, prefix: str) -> Network:
    """Return a network in evaluation mode with these tensors, as FP32 and without a copy.

    Raises:
        CheckpointError: A tensor is missing, surplus, of another shape or not finite. The message names it
            as in the file, with ``prefix``.
    """
    try:
        # On the meta device: no memory and no random numbers for weights that are replaced anyway.
        with torch.device("meta"):
            network = create()
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"it describes a network of impossible sizes: {error}") from error
    expected = network.state_dict()
    given = dict(tensors)
    for name in expected:
        if name.endswith("num_batches_tracked"):  # missing in old files; only training reads it
            given.setdefault(name, torch.zeros((), dtype=torch.long))
    _check_names_and_shapes(expected, given, prefix=prefix)
    given = {name: given[name].to(like.dtype).contiguous() for name, like in expected.items()}
    check_finite(given, prefix=prefix)
    network.load_state_dict(given, assign=True)
    return network.eval().requires_grad_(False)


def check_finite(tensors: Tensors, *, prefix: str) -> None:
    """Raise an error if a tensor contains NaN or infinity."""
    broken = [prefix + name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"NaN or infinity in {listed(broken)}; the training run diverged, use an earlier checkpoint"
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
        raise CheckpointError(
            f"its tensors do not match the architecture that they imply: {listed(problems)}"
        )


def listed(items: list[str]) -> str:
    """Return the first items as text, and how many more follow."""
    more = f"; and {len(items) - SHOWN} more ({len(items)} in all)" if len(items) > SHOWN else ""
    return "; ".join(items[:SHOWN]) + more


@dataclass(frozen=True, kw_only=True)
class EncoderPart:
    """An encoder: its tensors, and what the tensors do not say.

    Args:
        prefix: What precedes each tensor's name in the file, for messages.
        config: Its sizes if the file states them, otherwise None: they are read from the tensors.
        wide: Trained on wide pictures that fill rows S/8 to 7S/8 of a square one (cars).
        uses_average: Its codes are relative to the latent average; None if the file does not say.
        dataset: The name of the data set that it was trained on, if the file says it.
    """

    kind: EncoderKind
    tensors: Tensors
    input: InputSpec
    task: str
    prefix: str = "encoder."
    config: EncoderConfig | None = None
    wide: bool = False
    uses_average: bool | None = None
    dataset: str = ""


@dataclass(frozen=True, kw_only=True)
class GeneratorPart:
    """A generator: its tensors under this project's names, and its sizes."""

    config: GeneratorConfig
    tensors: Tensors
    prefix: str = "decoder."


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What one checkpoint file contains, in one form for all formats.

    Args:
        source: The name of the file, for messages.
        source_format: "psp", "e4e", "rosinality", "stylegan2-ada" or "psp_rt.trainer".
        latent_avg: As stored in the file: [L, D], [1, D] or [D].
    """

    source: str
    source_format: str
    encoder: EncoderPart | None = None
    generator: GeneratorPart | None = None
    latent_avg: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """What the user states about an encoder because its file does not.

    Args:
        encoder_type: A class name of the public code, or one of our kinds.
        input: "rgb", "gray" or "labels:N".
        label_resize: How label maps are resized to the input's size: "bilinear" or "nearest".
    """

    encoder_type: str | None = None
    input: str | None = None
    label_resize: str | None = None


def generator_config(tensors: Tensors, *, conv_clamp: float | None = None) -> GeneratorConfig:
    """Return the sizes of a StyleGAN2 generator."""
    channels = [shape(tensors, "conv1.activate.bias", axes=1)[0]]
    for resolution in range((count(tensors, "convs.") + 1) // 2):
        channels.append(shape(tensors, f"convs.{2 * resolution + 1}.activate.bias", axes=1)[0])
    return GeneratorConfig(
        channels=tuple(channels),
        style_dim=shape(tensors, "conv1.conv.modulation.weight", axes=2)[1],
        mapping_layers=max(count(tensors, "style.") - 1, 0),
        conv_clamp=conv_clamp,
    )


def encoder_kinds(tensors: Tensors) -> tuple[EncoderKind, ...]:
    """Return the kinds of encoder that have such tensors. Those of pSp and e4e look alike."""
    layers = {name.split(".")[0] for name in tensors}
    if "styles" in layers:
        return "psp", "e4e"
    if "output_layer_2" in layers:
        return ("naive_w+",)
    if "linear" in layers:
        return ("w",)
    raise CheckpointError(
        f"the encoder has the layers {', '.join(sorted(layers)[:8])}; expected styles (pSp, e4e), "
        "output_layer_2 (naive W+) or linear (W) next to input_layer and body"
    )


def input_side(tensors: Tensors) -> int:
    """Return the longer side of the input, from a head that halves its map until one pixel is left."""
    convolutions = (count(tensors, "styles.0.convs.") + 1) // 2
    return 16 << convolutions if convolutions else SIDE


def encoder_config(
    tensors: Tensors, kind: EncoderKind, *, height: int, width: int, generator: GeneratorConfig
) -> EncoderConfig:
    """Return the sizes of an encoder.

    Two of them are not in the tensors and come from the generator: the number of styles of the W
    encoder, and the length of a style of the naive W+ encoder.
    """
    widths, depths = _stages(tensors)
    num_styles, style_dim, head_width = generator.num_styles, generator.style_dim, widths[3]
    if kind in ("psp", "e4e"):
        num_styles = count(tensors, "styles.")
        style_dim, head_width = shape(tensors, "styles.0.linear.weight", axes=2)
    elif kind == "w":
        style_dim = shape(tensors, "linear.weight", axes=2)[0]
    else:
        rows, head_width = shape(tensors, "linear.weight", axes=2)
        num_styles = rows // style_dim
    return EncoderConfig(
        kind=kind,
        num_styles=num_styles,
        input_channels=shape(tensors, "input_layer.0.weight", axes=4)[1],
        input_height=height,
        input_width=width,
        style_dim=style_dim,
        widths=widths,
        depths=depths,
        head_width=head_width,
    )


def _stages(tensors: Tensors) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """Return the widths and the depths of the backbone's four stages.

    A stage begins where the number of channels changes, because that needs a convolution as shortcut.
    """
    blocks = count(tensors, "body.")
    changes = [block for block in range(blocks) if f"body.{block}.shortcut_layer.0.weight" in tensors]
    if len(changes) == 3:
        first, second, third = changes
        depths = (first, second - first, third - second, blocks - third)
    elif blocks == sum(OFFICIAL_DEPTHS):
        depths = OFFICIAL_DEPTHS
    else:
        raise CheckpointError(
            f"the encoder's backbone has {blocks} blocks and its width changes {len(changes)} times; "
            "expected IR-SE50 (24 blocks) or a backbone of four stages of different widths"
        )
    starts = (0, depths[0], depths[0] + depths[1], blocks - depths[3])
    first, second, third, fourth = (
        shape(tensors, f"body.{start}.res_layer.1.weight", axes=4)[0] for start in starts
    )
    return (first, second, third, fourth), depths
