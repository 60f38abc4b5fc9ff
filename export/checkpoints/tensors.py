"""The parts that every format is read into, and the sizes of encoders."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from export.errors import CheckpointError
from psp_rt.engine import InputSpec
from trainer.checkpoint_tensors import Tensors, count, shape
from trainer.networks import Encoder, EncoderConfig, EncoderKind, Generator, GeneratorConfig

OFFICIAL_DEPTHS = (3, 4, 14, 3)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model ready for export: FP32, in evaluation mode.

    Args:
        encoder: None for a generator alone.
        latent_avg: Added to every code, [L, D]; None for a model trained without one.
        input: What the encoder takes; None without an encoder.
        output_rows: The rows of the picture to keep, (first, after the last); None for all.
        source_format: "psp", "e4e", "rosinality", "stylegan2-ada" or "psp_rt.trainer".
        provenance: Where the model comes from, for the manifest: the files, and for each number that is not a
            weight what it was read from.
        alignment: How pictures of its data set are cut, "ffhq" or "none"; None if that is unknown.
        notes: What was assumed, chosen or left out, for the user.
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
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EncoderPart:
    """An encoder: its tensors, and what the tensors do not say.

    Args:
        prefix: What precedes each tensor's name in the file, for messages.
        config: Its sizes if the file states them, otherwise None: they are read from the tensors.
        wide: Trained on wide pictures that fill rows S/8 to 7S/8 of a square one (cars).
        uses_average: Its codes are relative to the latent average; None if the file does not say.
        has_options: The file has options, in which `start_from_latent_avg` may be absent.
        dataset: The name of the data set that it was trained on, if the file says it.
        style_dim: Length of a style, if the file states it apart from the encoder's tensors.
        facts: What each number was read from, by its name in the provenance.
    """

    kind: EncoderKind
    tensors: Tensors
    input: InputSpec
    task: str
    prefix: str = "encoder."
    config: EncoderConfig | None = None
    wide: bool = False
    uses_average: bool | None = None
    has_options: bool = True
    dataset: str = ""
    style_dim: int | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GeneratorPart:
    """A generator: its tensors under this project's names, and its sizes."""

    config: GeneratorConfig
    tensors: Tensors
    prefix: str = "decoder."
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What one checkpoint file contains, in one form for all formats.

    Args:
        source: The name of the file, for messages.
        source_format: "psp", "e4e", "rosinality", "stylegan2-ada" or "psp_rt.trainer".
        latent_avg: As stored in the file: [L, D], [1, D] or [D].
        alone: The file is a generator's, not half a model's.
        notes: What was chosen or left out.
    """

    source: str
    source_format: str
    encoder: EncoderPart | None = None
    generator: GeneratorPart | None = None
    latent_avg: Tensor | None = None
    alone: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """What the user states about an encoder because its file does not.

    Args:
        encoder_type: A class name of the public code, or one of our kinds.
        input: "rgb", "gray" or "labels:N".
        label_resize: How label maps are resized to the input's size: "bilinear" or "nearest".
        input_size: Height and width of the input.
    """

    encoder_type: str | None = None
    input: str | None = None
    label_resize: str | None = None
    input_size: tuple[int, int] | None = None


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


def head_side(tensors: Mapping[str, object]) -> int | None:
    """Return the longest input side that the heads reduce to one pixel; None if any size is reduced.

    Head 0 halves a map of a sixteenth of the input with each of its convolutions.
    """
    if "styles.0.linear.weight" not in tensors and not count(tensors, "styles.0.convs."):
        return None
    return 16 << (count(tensors, "styles.0.convs.") + 1) // 2


def encoder_config(
    tensors: Tensors,
    kind: EncoderKind,
    *,
    height: int,
    width: int,
    generator: GeneratorConfig,
    style_dim: int | None = None,
) -> EncoderConfig:
    """Return the sizes of an encoder.

    Two of them are not in its tensors: the number of styles of the W encoder is the generator's, and the
    length of a style of the naive W+ encoder is ``style_dim`` where its file states that, otherwise the
    generator's.
    """
    widths, depths = _stages(tensors)
    num_styles, head_width = generator.num_styles, widths[3]
    style_dim = style_dim or generator.style_dim
    side = None
    if kind in ("psp", "e4e"):
        num_styles = count(tensors, "styles.")
        style_dim, head_width = shape(tensors, "styles.0.linear.weight", axes=2)
        side = head_side(tensors)
    elif kind == "w":
        style_dim = shape(tensors, "linear.weight", axes=2)[0]
    else:
        rows, head_width = shape(tensors, "linear.weight", axes=2)
        num_styles, rest = divmod(rows, style_dim)
        if rest:
            raise CheckpointError(
                f"the encoder makes codes of {rows} numbers, which is no multiple of {style_dim}, the length "
                "of a style; give a generator and an encoder that belong together"
            )
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
        head_side=None if side == max(height, width) else side,
    )


def first_rows(tensors: Tensors, config: EncoderConfig, rows: int) -> dict[str, Tensor]:
    """Return the tensors of an encoder that makes only the first rows of its codes."""
    if config.kind == "naive_w+":
        end = rows * config.style_dim
        return {
            name: tensor[:end] if name in ("linear.weight", "linear.bias") else tensor
            for name, tensor in tensors.items()
        }
    later = tuple(f"styles.{row}." for row in range(rows, config.num_styles))
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(later)}


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
