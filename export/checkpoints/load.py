"""Load a model from any of the checkpoint formats that exist for pSp.

    pSp, e4e          .pt   encoder and generator
    rosinality        .pt   generator
    stylegan2-ada     .pkl  generator
    psp_rt.trainer    .pt   encoder and generator, written by `trainer.checkpoint`

The content tells the format; options and tensor shapes together tell the architecture. Every tensor that
is used must be present, finite and of the expected shape. Filters, which are constants, may be missing, and
so may noise that is not used and the mapping network of a generator whose codes an encoder makes.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from export.checkpoints import formats, nvidia, safe_load
from export.checkpoints.tensors import (
    Contents,
    EncoderPart,
    GeneratorPart,
    Model,
    Overrides,
    encoder_config,
    first_rows,
)
from export.errors import CheckpointError, reading
from psp_rt.files import sha256
from trainer.checkpoint_layout import find_networks
from trainer.checkpoint_tensors import build, build_generator, check_finite, constant_mapping
from trainer.networks import Encoder, Generator, GeneratorConfig, Noise

LatentAverage = Literal["file", "estimate", "none"]
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
    input_size: tuple[int, int] | None = None,
    noise: Noise = "const",
    conv_clamp: float | None = None,
) -> Model:
    """Load a checkpoint.

    Args:
        path: The checkpoint.
        encoder: Take the encoder from this file instead.
        generator: Take the generator from this file instead.
        encoder_type: The kind of encoder, if the file does not state it.
        latent_avg: "estimate" uses the mean of many mapped z instead of the file's average, "none" nothing.
        input: "rgb", "gray" or "labels:N", if the file does not state it.
        label_resize: "bilinear" or "nearest", instead of the method that such models were trained with.
        input_size: Height and width of the encoder's input, if it is not the largest that the tensors allow.
        noise: How the generator will be used; noise that is not used may be missing.
        conv_clamp: The bound on the generator's activations, if its file does not state it.

    For a pair of files, the latent average is the encoder's, whose codes are relative to it. An encoder whose
    file has none gets the one of the generator's file.

    Raises:
        CheckpointError: The message states what is wrong and what to do.
    """
    if encoder and generator:
        raise CheckpointError(f"with both --encoder and --generator, {path} is not used; give one of the two")
    overrides = Overrides(
        encoder_type=encoder_type, input=input, label_resize=label_resize, input_size=input_size
    )
    main = read(path, None if encoder else overrides, needs_generator=generator is None)
    encoder_file = read(encoder, overrides, needs_generator=False) if encoder else main
    generator_file = read(generator, None) if generator else main

    # The two networks and the average between them.
    encoder_part, generator_part = _parts(encoder_file, generator_file, overrides)
    if conv_clamp is not None:
        generator_part = _clamped(generator_part, conv_clamp, generator_file.source)
    notes = [f"{file.source}: {note}" for file in {id(f): f for f in (encoder_file, generator_file)}.values()
             for note in file.notes if conv_clamp is None or note != formats.NO_CLAMP]  # fmt: skip
    average, average_source = _average(encoder_file, generator_file, generator_part.config, latent_avg, notes)
    with reading(generator_file.source):
        built_generator = _build_generator(generator_part, encoder_part, average, latent_avg, noise, notes)
    config = built_generator.config
    if latent_avg == "estimate":
        average, average_source = _all_rows(built_generator.mean_style(), config), generator_file.source
    with reading(encoder_file.source):
        built_encoder = _build_encoder(encoder_part, config, notes) if encoder_part else None
    if encoder_part:
        spec = encoder_part.input
        if encoder_part.config is None:  # its own file would state the size
            notes.append(
                f"{encoder_file.source}: the input is {spec.kind} of {spec.height}x{spec.width} pixels "
                f"({encoder_part.facts['input_size']}); another size: --input-size HEIGHTxWIDTH"
            )

    size = config.size
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
            **({} if average is None else {"latent_avg_from": _shown(average_source)}),
            **_facts(encoder_file, generator_file, encoder_part, generator_part),
            **({"notes": "; ".join(map(_shown, notes))} if notes else {}),
        },
        notes=tuple(notes),
    )


def _clamped(part: GeneratorPart, bound: float, source: str) -> GeneratorPart:
    """Return a generator whose activations have a bound that its file does not state."""
    if not 0 < bound < float("inf"):
        raise CheckpointError(f"--conv-clamp is {bound:g}; expected a number above 0, usually 256")
    if part.facts.get("conv_clamp") != "not stated" and part.config.conv_clamp != bound:
        raise CheckpointError(
            f"--conv-clamp is {bound:g}, but {source} says {part.config.conv_clamp}; leave the option out"
        )
    config = replace(part.config, conv_clamp=bound)
    return replace(part, config=config, facts={**part.facts, "conv_clamp": "--conv-clamp"})


def read(path: Path, overrides: Overrides | None, *, needs_generator: bool = True) -> Contents:
    """Recognize the format of a file and return its contents.

    Args:
        path: The file.
        overrides: What the user states about its encoder; None if its encoder is not used.
        needs_generator: Its generator is used.
    """
    root = safe_load.read(path)
    keys = root.keys() if isinstance(root, Mapping) else set()
    with reading(path.name):
        if "format" in keys and root["format"] == formats.TRAINER_FORMAT:
            return formats.read_trained(root, path.name, overrides)
        if "G_ema" in keys and not isinstance(root["G_ema"], Mapping):
            return nvidia.read(root, path.name)
        layout = find_networks(root) if isinstance(root, Mapping) else None
        if layout:
            return formats.read_layout(
                layout, path.name, overrides=overrides, needs_generator=needs_generator
            )
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
    alone = encoder_file is generator_file and encoder_file.alone
    if encoder_file.encoder is None and not alone:
        raise CheckpointError(
            f"{encoder_file.source} holds no encoder; add one with --encoder FILE (a pSp or e4e .pt)"
        )
    if encoder_file.encoder is None and overrides != Overrides():
        raise CheckpointError(
            f"{encoder_file.source} is a generator alone, but --encoder-type, --input and --label-resize "
            "describe an encoder, as --input-size does; leave them out, or add one with --encoder FILE"
        )
    return encoder_file.encoder, generator_file.generator


def _build_generator(
    part: GeneratorPart,
    encoder: EncoderPart | None,
    average: Tensor | None,
    latent_avg: LatentAverage,
    noise: Noise,
    notes: list[str],
) -> Generator:
    """Return the generator; without a mapping network in its file, with a constant one if that is enough."""
    config, tensors = part.config, part.tensors
    if not config.mapping_layers:
        if latent_avg == "estimate" or (encoder is None and average is None):
            raise CheckpointError(
                f"the mapping network, {part.prefix}style.1 and so on, is missing; it is needed to "
                + ("estimate the latent average" if latent_avg == "estimate" else "make styles")
                + "; give a file that has it, or add an encoder's file with a latent_avg: --encoder FILE"
            )
        style = torch.zeros(config.style_dim) if average is None else average.mean(dim=0)
        tensors, config = {**tensors, **constant_mapping(style)}, replace(config, mapping_layers=1)
        what = "zero" if average is None else "the latent average"
        notes.append(f"the generator has no mapping network, so every random style is {what}")
    generator = build_generator(
        config,
        tensors,
        prefix=part.prefix,
        noise=noise,
        remedy=_noise_remedy(config, part, noise),
    )
    check_finite(generator.state_dict(), prefix=part.prefix)
    return generator


def _noise_remedy(config: GeneratorConfig, part: GeneratorPart, noise: Noise) -> str:
    """Return which option makes do without the noise that a file lacks."""
    images = [f"noises.noise_{layer}" for layer in range(config.num_styles - 1)]
    layers = ["conv1", *(f"convs.{layer}" for layer in range(config.num_styles - 2))]
    if noise != "none" and any(f"{layer}.noise.weight" not in part.tensors for layer in layers):
        return "without a strength for the noise, add --noise none"
    if noise == "const" and any(image not in part.tensors for image in images):
        return "without noise images, add --noise random or --noise none"
    return ""


def _build_encoder(part: EncoderPart, generator: GeneratorConfig, notes: list[str]) -> Encoder:
    """Return the encoder, making as many rows as the generator takes: the first ones of those it has."""
    config = part.config or encoder_config(
        part.tensors,
        part.kind,
        height=part.input.height,
        width=part.input.width,
        generator=generator,
        style_dim=part.style_dim,
    )
    tensors = part.tensors
    made, needed = (config.num_styles, config.style_dim), (generator.num_styles, generator.style_dim)
    if made[1] == needed[1] and made[0] > needed[0]:
        notes.append(
            f"the encoder makes {made[0]} styles; the first {needed[0]} are used, which the generator takes"
        )
        tensors = first_rows(tensors, config, needed[0])
        config = replace(config, num_styles=needed[0])
    elif made != needed:
        raise CheckpointError(
            f"the encoder makes codes of {made[0]} styles of {made[1]} numbers, but the generator of "
            f"{generator.size} pixels needs {needed[0]} of {needed[1]}; give a generator and an "
            "encoder that belong together"
        )
    encoder = build(partial(Encoder.create, config), tensors, prefix=part.prefix)
    check_finite(encoder.state_dict(), prefix=part.prefix)
    return encoder


def _average(
    encoder_file: Contents,
    generator_file: Contents,
    config: GeneratorConfig,
    latent_avg: LatentAverage,
    notes: list[str],
) -> tuple[Tensor | None, str]:
    """Return what is added to the encoder's codes [L, D], and the name of its file."""
    encoder = encoder_file.encoder
    if latent_avg != "file" or (encoder and encoder.uses_average is False):
        return None, ""
    for file in (encoder_file, generator_file):
        if file.latent_avg is None:
            continue
        if file is not encoder_file and encoder and encoder.uses_average is None and encoder.has_options:
            break  # its file would hold one if it had been trained with one
        with reading(file.source):
            average = _all_rows(file.latent_avg, config)
            check_finite({"latent_avg": average}, prefix="")
        if file.latent_avg.ndim == 2 and file.latent_avg.shape[0] > config.num_styles:
            notes.append(
                f"{file.source}: latent_avg has {file.latent_avg.shape[0]} rows; "
                f"the first {config.num_styles} are used"
            )
        if encoder and encoder.kind == "w":
            average[:] = average[0].clone()  # as e4e: the first row of its average for a single style
        if encoder and file is not encoder_file:
            notes.append(f"the latent average is that of {file.source}, because the encoder's file has none")
        return average, file.source
    if encoder and encoder.uses_average:
        raise CheckpointError(
            f"{encoder_file.source} was trained with start_from_latent_avg but holds no latent_avg; "
            "add --latent-avg estimate to use the mean of many mapped z"
        )
    if encoder and not encoder.has_options and encoder.uses_average is None:
        raise CheckpointError(
            f"{encoder_file.source} does not say whether its codes are relative to a latent average; "
            "add --latent-avg estimate, as for most models, or --latent-avg none"
        )
    return None, ""


def _all_rows(average: Tensor, config: GeneratorConfig) -> Tensor:
    """Return one row a style: the first rows of an average that has more."""
    rows, length = config.num_styles, config.style_dim
    found = tuple(average.shape)
    enough = average.ndim == 2 and found[0] >= rows and found[1] == length
    if not enough and found not in ((length,), (1, length)):
        raise CheckpointError(
            f"latent_avg has shape {found}; expected ({rows}, {length}), (1, {length}) or ({length},)"
        )
    if average.ndim == 2:
        average = average[:rows]
    return average.float().expand(rows, length).clone()


def _facts(
    encoder_file: Contents, generator_file: Contents, encoder: EncoderPart | None, generator: GeneratorPart
) -> dict[str, str]:
    """Return what each number that is not a weight was read from: the file, and the place in it."""
    source = _shown(generator_file.source)
    own = {"sizes": "tensors", **generator.facts}
    found = {f"generator_{name}_from": f"{source}: {fact}" for name, fact in own.items()}
    if encoder is None:
        return found
    own = {"num_styles": "tensors", **encoder.facts}
    if encoder.kind == "w":
        found["num_styles_from"] = f"{source}: tensors"
        del own["num_styles"]
    if encoder.kind == "naive_w+" and "style_dim" not in own:
        found["style_dim_from"] = f"{source}: tensors"
    return found | {f"{name}_from": f"{_shown(encoder_file.source)}: {fact}" for name, fact in own.items()}


def _shown(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _provenance(name: str, path: Path | None) -> dict[str, str]:
    return {} if path is None else {name: _shown(path.name), f"{name}_sha256": sha256(path)}
