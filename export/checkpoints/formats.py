"""Checkpoints of the public pSp and e4e code: ``{state_dict, opts, latent_avg}``.

``state_dict`` holds ``encoder.*`` and ``decoder.*``; every key of ``opts`` may be absent. What the
tensors say is read from them, and what both say must agree. e4e's encoder has the names and shapes
of pSp's but computes something else, so which of the two it is must be known.
"""

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np

from export.checkpoints.architecture import encoder_kinds, generator_config, input_side
from export.checkpoints.contents import Contents, EncoderPart, GeneratorPart, Overrides
from export.checkpoints.inputs import input_spec
from export.checkpoints.tensors import Tensors, as_tensor, as_tensors, listed, shape
from export.errors import CheckpointError
from psp_rt.engine.manifest import InputSpec
from trainer.networks import EncoderKind

Options = Mapping[str, Any]

ENCODER_TYPES: dict[str, EncoderKind] = {
    "GradualStyleEncoder": "psp",
    "Encoder4Editing": "e4e",
    "BackboneEncoderUsingLastLayerIntoW": "w",
    "SingleStyleCodeEncoder": "w",
    "BackboneEncoderUsingLastLayerIntoWPlus": "naive_w+",
}
PSP_OPTIONS = {"output_size", "learn_in_w", "input_nc", "label_nc"}  # e4e's code has none of them
TASKS = {
    "ffhq_frontalize": "frontalization",
    "celebs_sketch_to_face": "sketch",
    "celebs_seg_to_face": "segmentation",
    "celebs_super_resolution": "super-resolution",
}


def read(root: Mapping[str, Any], source: str, overrides: Overrides | None) -> Contents:
    """Return what an official file holds; without ``overrides``, all but its encoder."""
    options = options_of(root.get("opts"))
    encoder, decoder = _split(as_tensors(root["state_dict"]))
    generator = GeneratorPart(config=generator_config(decoder), tensors=decoder) if decoder else None
    if generator:
        check_size(options, generator.config.size, names=("output_size", "stylegan_size"))
    part = _encoder(encoder, options, overrides) if encoder and overrides else None
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
    """Refuse a generator of another size than the options say."""
    for name in names:
        if options.get(name, size) != size:
            raise CheckpointError(
                f"the options say {name}={options[name]!r}, but the generator's tensors make pictures of "
                f"{size} pixels"
            )


def _split(tensors: Tensors) -> tuple[Tensors, Tensors]:
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


def _encoder(tensors: Tensors, options: Options, overrides: Overrides) -> EncoderPart:
    channels = _input_channels(tensors, options)
    side = input_side(tensors)
    wide = str(options.get("dataset_type", "")).startswith("cars")
    spec = input_spec(
        channels,
        height=side * 3 // 4 if wide else side,
        width=side,
        declared=_declared(options.get("label_nc")),
        label_resize="bilinear",  # of label numbers: odd, but what the official weights were trained on
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
    )


def _declared(label_nc: Any) -> str | None:
    """Return what the option says of the input: 0 is colour; 1, as all sketch models have it, is no label map
    but grey values, which the official code reads as such; more is a label map.
    """
    if not label_nc:
        return None
    return "gray" if label_nc == 1 else f"labels:{label_nc}"


def _input_channels(tensors: Tensors, options: Options) -> int:
    if "conv1.weight" in tensors or "n_iters_per_batch" in options:
        raise CheckpointError(
            "the encoder is a ReStyle model, which refines its result in steps; not supported"
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
            f"the encoder type {named!r} is unknown; known are: {', '.join(ENCODER_TYPES)}; if it is one of "
            "these under another name, add --encoder-type psp, e4e, w or naive_w+"
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
        "the file does not say whether its encoder is pSp's or e4e's, whose tensors look alike; "
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
