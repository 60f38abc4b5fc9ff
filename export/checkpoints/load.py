"""Loading a model from any of the checkpoint formats that exist for pSp.

    pSp, e4e          .pt   encoder and generator
    rosinality        .pt   generator
    stylegan2-ada     .pkl  generator
    psp_rt.trainer    .pt   encoder and generator, written by `trainer.checkpoint`

The format is recognised from the content, the architecture is read from options and tensor shapes
together, and every tensor must be there, in its shape and finite.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from export.checkpoints import files, nvidia, rosinality, trained
from export.checkpoints import formats as official
from export.checkpoints.architecture import encoder_config
from export.checkpoints.contents import Contents, EncoderPart, GeneratorPart, Overrides
from export.checkpoints.tensors import build, check_finite
from export.errors import CheckpointError, reading
from psp_rt.engine.manifest import InputSpec
from trainer.networks import Encoder, EncoderConfig, Generator, GeneratorConfig

LatentAverage = Literal["file", "estimate"]
GENERATOR_FORMATS = ("rosinality", "stylegan2-ada")
SHOWN_KEYS = 8


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model ready for export: FP32, in evaluation mode.

    Args:
        encoder: None for a generator alone.
        latent_avg: Added to every code, [L, D]; None for a model trained without it.
        input: What the encoder takes; None without an encoder.
        output_rows: The rows of the picture that hold something, (first, after the last); None for all.
        source_format: "psp", "e4e", "rosinality", "stylegan2-ada" or "psp_rt.trainer".
        provenance: Where the model comes from, for the manifest.
    """

    encoder: Encoder | None
    generator: Generator
    latent_avg: Tensor | None
    input: InputSpec | None
    output_rows: tuple[int, int] | None
    task: str
    source_format: str
    provenance: dict[str, str]


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
        encoder_type: Which encoder it is, where the file does not say.
        latent_avg: "estimate" for the mean of many mapped z, instead of the file's.
        input: "rgb", "gray" or "labels:N", where the file does not say.
        label_resize: "bilinear" or "nearest", instead of what such models were trained with.

    In a pair of files the latent average is the one of the generator's file, if that has one.

    Raises:
        CheckpointError: The message says what is wrong and what to do.
    """
    if encoder and generator:
        raise CheckpointError(f"with both --encoder and --generator, {path} is not used; give one of the two")
    overrides = Overrides(encoder_type=encoder_type, input=input, label_resize=label_resize)
    main = read(path, None if encoder else overrides)
    encoder_file = read(encoder, overrides) if encoder else main
    generator_file = read(generator, None) if generator else main

    encoder_part, generator_part = _parts(encoder_file, generator_file, overrides)
    with reading(generator_file.source):
        built_generator = _build_generator(generator_part)
    with reading(encoder_file.source):
        built_encoder = _build_encoder(encoder_part, built_generator.config) if encoder_part else None
    if latent_avg == "estimate":
        average: Tensor | None = _all_rows(built_generator.mean_style(), built_generator.config)
    else:
        average = _average(encoder_file, generator_file, built_generator.config)
    size = built_generator.config.size
    return Model(
        encoder=built_encoder,
        generator=built_generator,
        latent_avg=average,
        input=encoder_part.input if encoder_part else None,
        output_rows=(size // 8, size * 7 // 8) if encoder_part and encoder_part.wide else None,
        task=encoder_part.task if encoder_part else "generation",
        source_format=main.source_format,
        provenance={
            "source_format": main.source_format,
            **_provenance("source", path),
            **_provenance("encoder_source", encoder),
            **_provenance("generator_source", generator),
            "latent_avg": "none" if average is None else latent_avg,
        },
    )


def read(path: Path, overrides: Overrides | None) -> Contents:
    """Recognise the format of a file and return what it holds.

    Args:
        path: The file.
        overrides: What the user says of its encoder; None if its encoder is not used.
    """
    root = files.read(path)
    keys = root.keys() if isinstance(root, Mapping) else set()
    with reading(path.name):
        if "format" in keys and root["format"] == trained.FORMAT:
            return trained.read(root, path.name, overrides)
        if "state_dict" in keys:
            return official.read(root, path.name, overrides)
        if "g_ema" in keys:
            return rosinality.read(root, path.name)
        if "G_ema" in keys:
            return nvidia.read(root, path.name)
    raise CheckpointError(f"{path} holds {_described(root)}; known are: {files.KNOWN_FORMATS}")


def _described(root: Any) -> str:
    if not isinstance(root, Mapping):
        return f"a {type(root).__name__}"
    names = ", ".join(repr(str(key)[:40]) for key in list(root)[:SHOWN_KEYS])
    return f"{len(root)} entries ({names}{', ...' if len(root) > SHOWN_KEYS else ''})"


def _parts(
    encoder_file: Contents, generator_file: Contents, overrides: Overrides
) -> tuple[EncoderPart | None, GeneratorPart]:
    """Return the two halves, or say which one is missing and how to give it."""
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
            f"{encoder_file.source} is a generator alone, and --encoder-type, --input and --label-resize are "
            "about an encoder; leave them out, or add one with --encoder FILE"
        )
    return encoder_file.encoder, generator_file.generator


def _build_generator(part: GeneratorPart) -> Generator:
    return build(partial(Generator, part.config), part.tensors, prefix=part.prefix)


def _build_encoder(part: EncoderPart, generator: GeneratorConfig) -> Encoder:
    config = part.config or encoder_config(
        part.tensors, part.kind, height=part.input.height, width=part.input.width, generator=generator
    )
    _check_pair(config, generator)
    return build(partial(Encoder.create, config), part.tensors, prefix=part.prefix)


def _check_pair(encoder: EncoderConfig, generator: GeneratorConfig) -> None:
    made = encoder.num_styles, encoder.style_dim
    needed = generator.num_styles, generator.style_dim
    if made != needed:
        raise CheckpointError(
            f"the encoder makes codes of {made[0]} styles of {made[1]} numbers, but the generator of "
            f"{generator.size} pixels needs {needed[0]} of {needed[1]}; give a generator and an "
            "encoder that belong together"
        )


def _average(encoder_file: Contents, generator_file: Contents, config: GeneratorConfig) -> Tensor | None:
    """Return what is added to the encoder's codes [L, D]: the generator's file is asked first."""
    encoder = encoder_file.encoder
    if encoder and encoder.uses_average is False:
        return None
    for file in (generator_file, encoder_file):
        if file.latent_avg is not None:
            with reading(file.source):
                check_finite({"latent_avg": file.latent_avg}, prefix="")
                average = _all_rows(file.latent_avg, config)
            if encoder and encoder.kind == "w":  # e4e adds the first row of its average to a single style
                average[:] = average[0].clone()
            return average
    if encoder and encoder.uses_average:
        raise CheckpointError(
            f"{encoder_file.source} was trained with start_from_latent_avg but holds no latent_avg; "
            "add --latent-avg estimate to use the mean of many mapped latents"
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
    return {name: shown, f"{name}_sha256": files.sha256(path)}
