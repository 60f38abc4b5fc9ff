"""The contents of checkpoints: official pSp and e4e files, StyleGAN2 generators, and this project's trainer.

pSp and e4e files are ``{state_dict, opts, latent_avg}``. ``state_dict`` holds ``encoder.*`` and
``decoder.*``; every key of ``opts`` may be missing. What the tensors say is read from them, and where
the options say it too, both must agree. The encoder of e4e has the names and shapes of pSp's but
computes something else, so the kind must be known.

Generators of rosinality/stylegan2-pytorch are ``{g_ema, latent_avg?, args?}``. Files written by
`python -m export convert` may also hold ``conv_clamp``. `trainer.checkpoint_layout` finds all of these in
other wrappings, too.

Each value that is not a weight is read from the file of the network that it describes, and what it was read
from is kept as a fact for the provenance:

    encoder's file     kind, input, input size, task, styles and their length, crop of cars, latent average
    generator's file   size, channels, depth of the mapping network, conv_clamp, noise
"""

import re
from collections.abc import Mapping
from typing import Any

from export.checkpoints import nvidia
from export.checkpoints.options import Options
from export.checkpoints.tensors import (
    Contents,
    EncoderPart,
    GeneratorPart,
    Overrides,
    encoder_kinds,
    head_side,
)
from export.errors import CheckpointError
from psp_rt.engine import RESIZES, InputSpec
from psp_rt.errors import InputError
from trainer import checkpoint
from trainer.checkpoint_layout import Layout
from trainer.checkpoint_tensors import Tensors, conv_clamp, generator_config, shape
from trainer.networks import EncoderKind

TRAINER_FORMAT = checkpoint.FORMAT

ENCODER_TYPES: dict[str, EncoderKind] = {
    "GradualStyleEncoder": "psp",
    "Encoder4Editing": "e4e",
    "BackboneEncoderUsingLastLayerIntoW": "w",
    "SingleStyleCodeEncoder": "w",
    "BackboneEncoderUsingLastLayerIntoWPlus": "naive_w+",
}
ASSUMED_SIDE = 256  # pixels; the input of every official model
PSP_OPTIONS = ("output_size", "learn_in_w", "input_nc", "label_nc")  # e4e's code has none of these
TASKS = {
    "ffhq_frontalize": "frontalization",
    "celebs_sketch_to_face": "sketch",
    "celebs_seg_to_face": "segmentation",
    "celebs_super_resolution": "super-resolution",
}
# How the pictures of official data sets are cut, by the start of ``dataset_type``: those of FFHQ and
# CelebA-HQ by FFHQ's formula; those of other things not by landmarks of a face.
ALIGNMENTS = {
    "ffhq": ("ffhq", "celeb"),
    "none": ("car", "horse", "church", "cat", "afhq", "stanford", "compcar", "lsun"),
}

NO_CLAMP = (
    "bare tensors do not state conv_clamp, the bound on activations, so none is applied; a generator that was"
    " trained in FP16 has one: add --conv-clamp 256, or export the network pickle instead"
)


def read_layout(
    layout: Layout, source: str, *, overrides: Overrides | None, needs_generator: bool
) -> Contents:
    """Return what is needed of a file of another project.

    Args:
        layout: The networks in it.
        source: The name of the file.
        overrides: What the user states about its encoder; None if its encoder is not used.
        needs_generator: Its generator is used.
    """
    options = Options(layout.options)
    encoder = _official_encoder(layout, options, overrides) if layout.encoder and overrides else None
    generator, average, notes = None, layout.latent_avg, layout.notes
    if needs_generator and layout.nvidia:
        found = nvidia.read_tensors(layout.nvidia, prefix=layout.generator_prefix, clamp=layout.conv_clamp)
        generator, average = found.generator, found.latent_avg if average is None else average
        if layout.conv_clamp is None:
            notes = (*notes, NO_CLAMP)
    elif needs_generator and layout.generator:
        generator = _generator(layout, options)
    is_e4e = _is_e4e(options) or (encoder is not None and encoder.kind == "e4e")
    source_format = "e4e" if is_e4e else "psp"
    if layout.alone:
        source_format = "stylegan2-ada" if layout.nvidia else "rosinality"
    return Contents(
        source=source,
        source_format=source_format,
        encoder=encoder,
        generator=generator,
        latent_avg=average,
        alone=layout.alone,
        notes=notes,
    )


def _generator(layout: Layout, options: Options) -> GeneratorPart:
    """Return a generator under rosinality's names, checked against the options of its file."""
    clamp = conv_clamp(layout.conv_clamp)
    config = generator_config(layout.generator, conv_clamp=clamp)
    for name in (
        ("output_size", "stylegan_size", "size") if layout.alone else ("output_size", "stylegan_size")
    ):
        stated = options.number(name)
        if stated not in (None, config.size):
            raise CheckpointError(
                f"the options say {name}={stated}, but the generator's tensors make pictures of "
                f"{config.size} pixels"
            )
    depth = options.number("n_mlp") if layout.alone else None
    if depth is not None and config.mapping_layers and depth != config.mapping_layers:
        raise CheckpointError(
            f"the options say n_mlp={depth}, but the mapping network has {config.mapping_layers} layers"
        )
    facts = {"conv_clamp": "not stated" if layout.conv_clamp is None else "conv_clamp"}
    return GeneratorPart(config=config, tensors=layout.generator, prefix=layout.generator_prefix, facts=facts)


def _official_encoder(layout: Layout, options: Options, overrides: Overrides) -> EncoderPart:
    tensors = layout.encoder
    channels = _input_channels(tensors, options)
    kind, kind_fact = _kind(tensors, options, overrides)
    dataset = options.text("dataset_type")
    # Only e4e's code knows of wide pictures; pSp trains on squares, whatever its data are called.
    wide = "cars_" in dataset and (kind == "e4e" or _is_e4e(options))
    height, width, size_fact = _input_size(tensors, overrides, wide=wide)
    label_nc = options.number("label_nc")
    spec = input_spec(
        channels,
        height=height,
        width=width,
        declared=None if label_nc is None else _declared(label_nc),
        label_resize="bilinear",  # odd for label numbers, but the official weights were trained this way
        overrides=overrides,
    )
    if options.flag("learn_in_w") and kind != "w":
        raise CheckpointError(
            f"the options say learn_in_w=True, but the tensors are those of a {kind} encoder"
        )
    style_dim, dim_fact = _style_dim(layout, options)
    task = _task(dataset, spec)
    input_fact = "input channels" if label_nc is None else "option label_nc"
    facts = {
        "encoder_type": kind_fact,
        "input": "--input" if overrides.input else input_fact,
        "input_size": size_fact,
        "task": "option dataset_type" if dataset else "the kind of input",
    }
    if wide:
        facts["output_rows"] = "option dataset_type"
    if kind == "naive_w+" and style_dim:
        facts["style_dim"] = dim_fact
    return EncoderPart(
        kind=kind,
        tensors=tensors,
        input=spec,
        task=task,
        prefix=layout.encoder_prefix,
        wide=wide,
        uses_average=options.flag("start_from_latent_avg"),
        has_options=layout.options is not None,
        style_dim=style_dim,
        dataset=dataset,
        facts=facts,
    )


def _input_size(tensors: Tensors, overrides: Overrides, *, wide: bool) -> tuple[int, int, str]:
    """Return height and width of the input, and what they were read from."""
    side = head_side(tensors)
    if overrides.input_size:
        height, width = overrides.input_size
        if height % 16 or width % 16 or min(height, width) < 16:
            raise CheckpointError(
                f"--input-size is {height}x{width}; both sides must be multiples of 16 and at least 16"
            )
        if side is not None and max(height, width) > side:
            raise CheckpointError(
                f"--input-size is {height}x{width}, but the encoder's heads reduce at most {side} "
                f"pixels to one; give a size of up to {side}"
            )
        return height, width, "--input-size"
    fact = (
        "assumed; the tensors do not say"
        if side is None
        else "the largest that the heads reduce to one pixel"
    )
    side = side or ASSUMED_SIDE
    return side * 3 // 4 if wide else side, side, fact


def _style_dim(layout: Layout, options: Options) -> tuple[int | None, str]:
    """Return the length of a style as the encoder's file states it, apart from the encoder's tensors."""
    modulation = layout.generator.get("conv1.conv.modulation.weight")
    if modulation is not None and modulation.ndim == 2:
        return modulation.shape[1], "its own generator"
    if layout.latent_avg is not None and layout.latent_avg.ndim:
        return layout.latent_avg.shape[-1], "its latent_avg"
    size = options.number("output_size") or options.number("stylegan_size") or 0
    rows = layout.encoder.get("linear.bias")
    if size > 2 and rows is not None and rows.ndim == 1:
        return rows.shape[0] // (2 * (size.bit_length() - 1) - 2), "option output_size"
    return None, ""


def _is_e4e(options: Options) -> bool:
    return "stylegan_size" in options


def _declared(label_nc: int) -> str:
    """Return the kind of input that the option ``label_nc`` stands for.

    0 is RGB and more than 1 is a label map. All sketch models have 1, but their official input is a
    gray picture, not a label map.
    """
    return {0: "rgb", 1: "gray"}.get(label_nc, f"labels:{label_nc}")


def _input_channels(tensors: Tensors, options: Options) -> int:
    if "conv1.weight" in tensors or options.number("n_iters_per_batch"):
        raise CheckpointError(
            "the encoder is a ReStyle model, which refines its result in steps; these are not supported"
        )
    channels = shape(tensors, "input_layer.0.weight", axes=4)[1]
    stated = options.number("input_nc")
    if stated not in (None, channels):
        raise CheckpointError(
            f"the options say input_nc={stated}, but the tensor encoder.input_layer.0.weight "
            f"has {channels} input channels"
        )
    return channels


def _kind(tensors: Tensors, options: Options, overrides: Overrides) -> tuple[EncoderKind, str]:
    """Return the kind of encoder and what says so."""
    possible = encoder_kinds(tensors)
    named = overrides.encoder_type or options.text("encoder_type")
    if not named and len(possible) == 1:
        return possible[0], "tensors"
    if not named:
        return _psp_or_e4e(options)
    kind = named if named in ENCODER_TYPES.values() else ENCODER_TYPES.get(str(named))
    if kind is None:
        raise CheckpointError(
            f"the encoder type {named!r} is unknown; expected one of {', '.join(ENCODER_TYPES)}; "
            "if it is one of these under another name, add --encoder-type psp, e4e, w or naive_w+"
        )
    if kind not in possible:
        raise CheckpointError(
            f"the encoder type is {named}, but the tensors are those of a {' or '.join(possible)} encoder"
        )
    return kind, "--encoder-type" if overrides.encoder_type else "option encoder_type"


def _psp_or_e4e(options: Options) -> tuple[EncoderKind, str]:
    if _is_e4e(options):
        return "e4e", "option stylegan_size"
    for name in PSP_OPTIONS:
        if name in options:
            return "psp", f"option {name}"
    raise CheckpointError(
        "the file does not say whether its encoder is pSp's or e4e's, and their tensors look alike; "
        "add --encoder-type psp or --encoder-type e4e"
    )


def _task(dataset: str, spec: InputSpec) -> str:
    if dataset in TASKS:
        return TASKS[dataset]
    if "toon" in dataset:
        return "toonify"
    if dataset.endswith("_encode"):
        return "inversion"
    return {"labels": "segmentation", "gray": "sketch", "rgb": "translation"}[spec.kind]


def alignment_of(dataset: str) -> str | None:
    """Return how the pictures of an official data set are cut; None for unknown data sets.

    >>> alignment_of("ffhq_encode"), alignment_of("cars_encode"), alignment_of("my_data")
    ('ffhq', 'none', None)
    """
    for alignment, starts in ALIGNMENTS.items():
        if dataset.startswith(starts):
            return alignment
    return None


def read_trained(root: Mapping[str, Any], source: str, overrides: Overrides | None) -> Contents:
    """Return the contents of a file that this project's trainer wrote."""
    try:
        loaded = checkpoint.parse(root, name=source)
    except (InputError, ValueError) as error:
        raise CheckpointError(str(error).removeprefix(f"{source} ")) from error
    generator = loaded.model.generator
    return Contents(
        source=source,
        source_format=TRAINER_FORMAT,
        encoder=_trained_encoder(loaded, overrides) if overrides else None,
        generator=GeneratorPart(
            config=generator.config,
            tensors=generator.state_dict(),
            prefix="generator.",
            facts={"conv_clamp": "generator_config"},
        ),
        latent_avg=loaded.model.latent_avg,
    )


def _trained_encoder(loaded: checkpoint.Checkpoint, overrides: Overrides) -> EncoderPart:
    encoder, labels = loaded.model.encoder, loaded.input_kind == "labels"
    if overrides.encoder_type not in (None, encoder.config.kind):
        raise CheckpointError(
            f"--encoder-type is {overrides.encoder_type}, but the file says "
            f"{encoder.config.kind}; leave it out"
        )
    if overrides.input_size not in (None, (encoder.config.input_height, encoder.config.input_width)):
        raise CheckpointError(
            f"--input-size is {'x'.join(map(str, overrides.input_size or ()))}, but the file says "
            f"{encoder.config.input_height}x{encoder.config.input_width}; leave it out"
        )
    spec = input_spec(
        encoder.config.input_channels,
        height=encoder.config.input_height,
        width=encoder.config.input_width,
        declared=f"labels:{loaded.labels}" if labels else loaded.input_kind,
        label_resize="nearest",
        overrides=overrides,
    )
    return EncoderPart(
        kind=encoder.config.kind,
        config=encoder.config,
        tensors=encoder.state_dict(),
        input=spec,
        task=loaded.task,
        uses_average=loaded.model.latent_avg is not None,
        facts=dict.fromkeys(("encoder_type", "input_size"), "encoder_config")
        | {"input": "--input" if overrides.input else "input", "task": "task"},
    )


def input_spec(
    channels: int,
    *,
    height: int,
    width: int,
    declared: str | None,
    label_resize: str,
    overrides: Overrides,
) -> InputSpec:
    """Return the input of an encoder.

    Args:
        channels: Input channels of its first convolution.
        declared: "rgb", "gray" or "labels:N" as the file states; None to decide by the number of channels.
        label_resize: How models of this format were trained; ``overrides`` take precedence.

    Raises:
        CheckpointError: What the file or the user states does not match the number of channels.
    """
    if channels == 6 and not (overrides.input or declared == "labels:6"):
        raise CheckpointError(
            "the encoder has 6 input channels: a ReStyle model, which refines its result in steps; these are "
            "not supported. If the input is a map of six labels, add --input labels:6"
        )
    text = overrides.input or declared or {1: "gray", 3: "rgb"}.get(channels, f"labels:{channels}")
    kind, needed = _parse_input(text)
    if needed != channels:
        who = "--input says" if overrides.input else "the file's options say"
        fitting = {1: "gray", 3: "rgb"}.get(channels, f"labels:{channels}")
        raise CheckpointError(
            f"{who} {text}, which needs {needed} input channels, but the tensor input_layer.0.weight "
            f"has {channels}; if the option is wrong, add --input {fitting}"
        )
    if kind != "labels":
        if overrides.label_resize:
            raise CheckpointError(f"--label-resize is for label maps, but the input is {kind}; leave it out")
        return InputSpec(kind=kind, height=height, width=width)
    resize = overrides.label_resize or label_resize
    if resize not in RESIZES:
        raise CheckpointError(f"--label-resize is {resize!r}; expected one of {', '.join(RESIZES)}")
    return InputSpec(kind="labels", height=height, width=width, labels=channels, resize=resize)


def _parse_input(text: str) -> tuple[str, int]:
    if text in ("rgb", "gray"):
        return text, 3 if text == "rgb" else 1
    labels = re.fullmatch(r"labels:([1-9]\d{0,2})", text)
    if not labels or labels[1] == "1":  # a single label makes no map
        raise CheckpointError(f"--input is {text!r}; expected rgb, gray or labels:N, for example labels:19")
    return "labels", int(labels[1])
