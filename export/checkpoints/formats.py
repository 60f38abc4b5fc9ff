"""The ``.pt`` formats: official pSp and e4e files, rosinality's generators, and this project's trainer.

pSp and e4e files are ``{state_dict, opts, latent_avg}``. ``state_dict`` holds ``encoder.*`` and
``decoder.*``; every key of ``opts`` may be missing. What the tensors say is read from them, and where
the options say it too, both must agree. The encoder of e4e has the names and shapes of pSp's but
computes something else, so the kind must be known.

Generators of rosinality/stylegan2-pytorch are ``{g_ema, latent_avg?, args?}``. Files written by
`python -m export convert` may also hold ``conv_clamp``.
"""

import argparse
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from export.checkpoints.tensors import (
    Contents,
    EncoderPart,
    GeneratorPart,
    Overrides,
    Tensors,
    as_tensor,
    as_tensors,
    encoder_kinds,
    generator_config,
    input_side,
    listed,
    shape,
)
from export.errors import CheckpointError
from psp_rt.engine import RESIZES, InputSpec
from psp_rt.errors import InputError
from trainer import checkpoint
from trainer.networks import EncoderKind

Options = Mapping[str, Any]
TRAINER_FORMAT = checkpoint.FORMAT

ENCODER_TYPES: dict[str, EncoderKind] = {
    "GradualStyleEncoder": "psp",
    "Encoder4Editing": "e4e",
    "BackboneEncoderUsingLastLayerIntoW": "w",
    "SingleStyleCodeEncoder": "w",
    "BackboneEncoderUsingLastLayerIntoWPlus": "naive_w+",
}
PSP_OPTIONS = {"output_size", "learn_in_w", "input_nc", "label_nc"}  # e4e's code has none of these
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


def read_official(root: Mapping[str, Any], source: str, overrides: Overrides | None) -> Contents:
    """Return the contents of an official file; without ``overrides``, all but its encoder."""
    options = options_of(root.get("opts"))
    encoder, decoder = _split(as_tensors(root["state_dict"]))
    generator = GeneratorPart(config=generator_config(decoder), tensors=decoder) if decoder else None
    if generator:
        check_size(options, generator.config.size, names=("output_size", "stylegan_size"))
    part = _official_encoder(encoder, options, overrides) if encoder and overrides else None
    is_e4e = "stylegan_size" in options or (part is not None and part.kind == "e4e")
    latent_avg = root.get("latent_avg")
    return Contents(
        source=source,
        source_format="e4e" if is_e4e else "psp",
        encoder=part,
        generator=generator,
        latent_avg=None if latent_avg is None else as_tensor(latent_avg, "latent_avg"),
    )


def options_of(found: object) -> dict[str, Any]:
    """Return the options as a dictionary of plain values, empty if there are none."""
    if isinstance(found, argparse.Namespace):
        found = vars(found)
    if not isinstance(found, Mapping | None):
        raise CheckpointError(f"the options are a {type(found).__name__}; expected a dictionary")
    plain = {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in (found or {}).items()
    }
    return {name: value for name, value in plain.items() if isinstance(value, str | int | float)}


def check_size(options: Options, size: int, *, names: tuple[str, ...]) -> None:
    """Check that the generator has the size that the options state."""
    for name in names:
        if options.get(name, size) != size:
            raise CheckpointError(
                f"the options say {name}={options[name]!r}, but the generator's tensors make pictures of "
                f"{size} pixels"
            )


def _split(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Return the tensors of the encoder and of the generator."""
    parts: dict[str, dict[str, Any]] = {"encoder": {}, "decoder": {}}
    surplus = []
    for full_name, tensor in tensors.items():
        owner, _, name = full_name.partition(".")
        if owner in parts:
            parts[owner][name] = tensor
        else:
            surplus.append(f"{full_name} {tuple(tensor.shape)}")
    if surplus:
        raise CheckpointError(f"expected the tensors encoder.* and decoder.*; surplus are {listed(surplus)}")
    return parts["encoder"], parts["decoder"]


def _official_encoder(tensors: Tensors, options: Options, overrides: Overrides) -> EncoderPart:
    channels = _input_channels(tensors, options)
    side = input_side(tensors)
    dataset = str(options.get("dataset_type", ""))
    wide = dataset.startswith("cars")
    spec = input_spec(
        channels,
        height=side * 3 // 4 if wide else side,
        width=side,
        declared=_declared(options.get("label_nc")),
        label_resize="bilinear",  # odd for label numbers, but the official weights were trained this way
        overrides=overrides,
    )
    kind = _kind(tensors, options, overrides)
    if options.get("learn_in_w") and kind != "w":
        raise CheckpointError(
            f"the options say learn_in_w=True, but the tensors are those of a {kind} encoder"
        )
    return EncoderPart(
        kind=kind,
        tensors=tensors,
        input=spec,
        task=_task(options, spec),
        wide=wide,
        uses_average=options.get("start_from_latent_avg"),
        dataset=dataset,
    )


def _declared(label_nc: Any) -> str | None:
    """Return the kind of input that the option ``label_nc`` stands for.

    0 is RGB and more than 1 is a label map. All sketch models have 1, but their official input is a
    gray picture, not a label map.
    """
    if not label_nc:
        return None
    return "gray" if label_nc == 1 else f"labels:{label_nc}"


def _input_channels(tensors: Tensors, options: Options) -> int:
    if "conv1.weight" in tensors or "n_iters_per_batch" in options:
        raise CheckpointError(
            "the encoder is a ReStyle model, which refines its result in steps; these are not supported"
        )
    channels = shape(tensors, "input_layer.0.weight", axes=4)[1]
    if options.get("input_nc", channels) != channels:
        raise CheckpointError(
            f"the options say input_nc={options['input_nc']!r}, but the tensor encoder.input_layer.0.weight "
            f"has {channels} input channels"
        )
    return channels


def _kind(tensors: Tensors, options: Options, overrides: Overrides) -> EncoderKind:
    possible = encoder_kinds(tensors)
    named = overrides.encoder_type or options.get("encoder_type")
    if named is None and len(possible) == 1:
        return possible[0]
    if named is None and "e4e" in possible:
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
    return kind


def _psp_or_e4e(options: Options) -> EncoderKind:
    if "stylegan_size" in options:
        return "e4e"
    if PSP_OPTIONS & options.keys():
        return "psp"
    raise CheckpointError(
        "the file does not say whether its encoder is pSp's or e4e's, and their tensors look alike; "
        "add --encoder-type psp or --encoder-type e4e"
    )


def _task(options: Options, spec: InputSpec) -> str:
    dataset = str(options.get("dataset_type", ""))
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


def read_rosinality(root: Mapping[str, Any], source: str) -> Contents:
    """Return the averaged generator of a training or converted file; other networks in it are ignored."""
    tensors = as_tensors(root["g_ema"])
    clamp = root.get("conv_clamp")
    if clamp is not None and not (isinstance(clamp, int | float) and clamp > 0):
        raise CheckpointError(f"conv_clamp is {clamp!r:.40}; expected a number above 0")
    config = generator_config(tensors, conv_clamp=clamp)
    check_size(options_of(root.get("args")), config.size, names=("size",))
    latent_avg = root.get("latent_avg")
    return Contents(
        source=source,
        source_format="rosinality",
        generator=GeneratorPart(config=config, tensors=tensors, prefix="g_ema."),
        latent_avg=None if latent_avg is None else as_tensor(latent_avg, "latent_avg"),
    )


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
        generator=GeneratorPart(config=generator.config, tensors=generator.state_dict(), prefix="generator."),
        latent_avg=loaded.model.latent_avg,
    )


def _trained_encoder(loaded: checkpoint.Checkpoint, overrides: Overrides) -> EncoderPart:
    encoder, labels = loaded.model.encoder, loaded.input_kind == "labels"
    if overrides.encoder_type not in (None, encoder.config.kind):
        raise CheckpointError(
            f"--encoder-type is {overrides.encoder_type}, but the file says "
            f"{encoder.config.kind}; leave it out"
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
    if channels == 6 and not (overrides.input or declared):
        raise CheckpointError(
            "the encoder has 6 input channels: a ReStyle model, which refines its result in steps; these are "
            "not supported. If the input is a map of six labels, add --input labels:6"
        )
    text = overrides.input or declared or {1: "gray", 3: "rgb"}.get(channels, f"labels:{channels}")
    kind, needed = _parse_input(text)
    if needed != channels:
        who = "--input says" if overrides.input else "the file's options say"
        raise CheckpointError(
            f"{who} {text}, which needs {needed} input channels, but the tensor input_layer.0.weight "
            f"has {channels}"
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
