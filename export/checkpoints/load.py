"""Load a model from any of the checkpoint formats that exist for pSp.

    pSp, e4e          .pt   encoder and generator
    rosinality        .pt   generator
    stylegan2-ada     .pkl  generator
    psp_rt.trainer    .pt   encoder and generator, written by `trainer.checkpoint`

The content tells the format; options and tensor shapes together tell the architecture. Every tensor
must be present, finite and of the expected shape.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from export.checkpoints import formats, nvidia, safe_load
from export.checkpoints.tensors import (
    Contents,
    EncoderPart,
    GeneratorPart,
    Model,
    Overrides,
    build,
    check_finite,
    encoder_config,
)
from export.errors import CheckpointError, reading
from psp_rt.files import sha256
from trainer.networks import Encoder, Generator, GeneratorConfig

LatentAverage = Literal["file", "estimate"]
GENERATOR_FORMATS = ("rosinality", "stylegan2-ada")
SHOWN_KEYS = 8


def load(
    path: Path,
    *,
    encoder: Path | None = None,
    generator: Path | None = None,
    encoder_type: str | None = None,
    latent_avg: LatentAverage = "file",
    input: str | None = None,
    label_resize: str | None = None,
) -> Model:
    """Load a checkpoint.

    Args:
        path: The checkpoint.
        encoder: Take the encoder from this file instead.
        generator: Take the generator from this file instead.
        encoder_type: The kind of encoder, if the file does not state it.
        latent_avg: "estimate" uses the mean of many mapped z instead of the file's average.
        input: "rgb", "gray" or "labels:N", if the file does not state it.
        label_resize: "bilinear" or "nearest", instead of the method that such models were trained with.

    For a pair of files, the latent average is taken from the generator's file if it has one.

    Raises:
        CheckpointError: The message states what is wrong and what to do.
    """
    if encoder and generator:
        raise CheckpointError(f"with both --encoder and --generator, {path} is not used; give one of the two")
    overrides = Overrides(encoder_type=encoder_type, input=input, label_resize=label_resize)
    main = read(path, None if encoder else overrides)
    encoder_file = read(encoder, overrides) if encoder else main
    generator_file = read(generator, None) if generator else main

    encoder_part, generator_part = _parts(encoder_file, generator_file, overrides)
    with reading(generator_file.source):
        built_generator = build(
            partial(Generator, generator_part.config), generator_part.tensors, prefix=generator_part.prefix
        )
    with reading(encoder_file.source):
        built_encoder = _build_encoder(encoder_part, built_generator.config) if encoder_part else None
    if latent_avg == "estimate":
        average: Tensor | None = _all_rows(built_generator.mean_style(), built_generator.config)
    else:
        average = _average(encoder_file, generator_file, built_generator.config)
    size = built_generator.config.size
    alignment = formats.alignment_of(encoder_part.dataset) if encoder_part else None
    return Model(
        encoder=built_encoder,
        generator=built_generator,
        latent_avg=average,
        input=encoder_part.input if encoder_part else None,
        output_rows=(size // 8, size * 7 // 8) if encoder_part and encoder_part.wide else None,
        task=encoder_part.task if encoder_part else "generation",
        source_format=main.source_format,
        alignment=alignment,
        provenance={
            "source_format": main.source_format,
            **_provenance("source", path),
            **_provenance("encoder_source", encoder),
            **_provenance("generator_source", generator),
            "latent_avg": "none" if average is None else latent_avg,
            **({"alignment": f"data set {encoder_part.dataset}"} if encoder_part and alignment else {}),
        },
    )


def read(path: Path, overrides: Overrides | None) -> Contents:
    """Recognize the format of a file and return its contents.

    Args:
        path: The file.
        overrides: What the user states about its encoder; None if its encoder is not used.
    """
    root = safe_load.read(path)
    keys = root.keys() if isinstance(root, Mapping) else set()
    with reading(path.name):
        if "format" in keys and root["format"] == formats.TRAINER_FORMAT:
            return formats.read_trained(root, path.name, overrides)
        if "state_dict" in keys:
            return formats.read_official(root, path.name, overrides)
        if "g_ema" in keys:
            return formats.read_rosinality(root, path.name)
        if "G_ema" in keys:
            return nvidia.read(root, path.name)
    raise CheckpointError(f"{path} holds {_described(root)}; supported formats: {safe_load.KNOWN_FORMATS}")


def _described(root: Any) -> str:
    if not isinstance(root, Mapping):
        return f"a {type(root).__name__}"
    names = ", ".join(repr(str(key)[:40]) for key in list(root)[:SHOWN_KEYS])
    return f"{len(root)} entries ({names}{', ...' if len(root) > SHOWN_KEYS else ''})"


def _parts(
    encoder_file: Contents, generator_file: Contents, overrides: Overrides
) -> tuple[EncoderPart | None, GeneratorPart]:
    """Return the two halves. If one is missing, the error tells how to provide it."""
    if generator_file.generator is None:
        raise CheckpointError(
            f"{generator_file.source} holds no generator; add one with --generator FILE (rosinality .pt or "
            "stylegan2-ada .pkl)"
        )
    alone = encoder_file is generator_file and encoder_file.source_format in GENERATOR_FORMATS
    if encoder_file.encoder is None and not alone:
        raise CheckpointError(
            f"{encoder_file.source} holds no encoder; add one with --encoder FILE (a pSp or e4e .pt)"
        )
    if encoder_file.encoder is None and overrides != Overrides():
        raise CheckpointError(
            f"{encoder_file.source} is a generator alone, but --encoder-type, --input and --label-resize "
            "describe an encoder; leave them out, or add one with --encoder FILE"
        )
    return encoder_file.encoder, generator_file.generator


def _build_encoder(part: EncoderPart, generator: GeneratorConfig) -> Encoder:
    config = part.config or encoder_config(
        part.tensors, part.kind, height=part.input.height, width=part.input.width, generator=generator
    )
    made, needed = (config.num_styles, config.style_dim), (generator.num_styles, generator.style_dim)
    if made != needed:
        raise CheckpointError(
            f"the encoder makes codes of {made[0]} styles of {made[1]} numbers, but the generator of "
            f"{generator.size} pixels needs {needed[0]} of {needed[1]}; give a generator and an "
            "encoder that belong together"
        )
    return build(partial(Encoder.create, config), part.tensors, prefix=part.prefix)


def _average(encoder_file: Contents, generator_file: Contents, config: GeneratorConfig) -> Tensor | None:
    """Return what is added to the encoder's codes [L, D]. The generator's file takes precedence."""
    encoder = encoder_file.encoder
    if encoder and encoder.uses_average is False:
        return None
    for file in (generator_file, encoder_file):
        if file.latent_avg is not None:
            with reading(file.source):
                check_finite({"latent_avg": file.latent_avg}, prefix="")
                average = _all_rows(file.latent_avg, config)
            if encoder and encoder.kind == "w":
                average[:] = average[0].clone()  # as e4e: the first row of its average for a single style
            return average
    if encoder and encoder.uses_average:
        raise CheckpointError(
            f"{encoder_file.source} was trained with start_from_latent_avg but holds no latent_avg; "
            "add --latent-avg estimate to use the mean of many mapped z"
        )
    return None


def _all_rows(average: Tensor, config: GeneratorConfig) -> Tensor:
    rows, length = config.num_styles, config.style_dim
    if tuple(average.shape) not in ((length,), (1, length), (rows, length)):
        raise CheckpointError(
            f"latent_avg has shape {tuple(average.shape)}; "
            f"expected ({rows}, {length}), (1, {length}) or ({length},)"
        )
    return average.float().expand(rows, length).clone()


def _provenance(name: str, path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    shown = "".join(letter if letter.isprintable() else "?" for letter in path.name)
    return {name: shown, f"{name}_sha256": sha256(path)}
