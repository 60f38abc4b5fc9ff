"""Reading the sizes of a network from the shapes of its tensors."""

from export.checkpoints.tensors import Tensors, count, shape
from export.errors import CheckpointError
from trainer.networks import EncoderConfig, EncoderKind, GeneratorConfig

OFFICIAL_DEPTHS = (3, 4, 14, 3)
SIDE = 256  # pixels; the input of every official model


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
    """Return the kinds of encoder that have such tensors; pSp's and e4e's are the same."""
    layers = {name.split(".")[0] for name in tensors}
    if "styles" in layers:
        return "psp", "e4e"
    if "output_layer_2" in layers:
        return ("naive_w+",)
    if "linear" in layers:
        return ("w",)
    raise CheckpointError(
        f"the encoder has the layers {', '.join(sorted(layers)[:8])}; expected styles (pSp, e4e), "
        "output_layer_2 (naive W+) or linear (W) beside input_layer and body"
    )


def input_side(tensors: Tensors) -> int:
    """Return the longer side of the input: a head halves its map until one pixel is left."""
    convolutions = (count(tensors, "styles.0.convs.") + 1) // 2
    return 16 << convolutions if convolutions else SIDE


def encoder_config(
    tensors: Tensors, kind: EncoderKind, *, height: int, width: int, generator: GeneratorConfig
) -> EncoderConfig:
    """Return the sizes of an encoder.

    What its tensors do not say comes from the generator: the number of styles for the W encoder,
    the length of a style for the naive W+ encoder.
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

    A stage begins where the number of channels changes, which needs a convolution as shortcut.
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
