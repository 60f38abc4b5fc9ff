"""A training checkpoint: the model as it would be exported, and all that a resumed run needs.

The file is a ``torch.save`` of plain containers and tensors, so it loads with ``weights_only=True``:

    format, version      "psp_rt.trainer", 1
    task                 "sketch", "inversion", ...
    input                {"kind": "rgb" | "gray" | "labels", "labels": number or None}
    encoder_config       fields of `EncoderConfig`
    generator_config     fields of `GeneratorConfig`
    encoder, generator   state dicts; averaged over training where the trainer averages
    latent_avg           [L, D], [D] or None
    training             what only the trainer reads: live weights, optimizer, progress

`load_generator` also reads the generators of other projects, for which an encoder can be trained.
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from psp_rt.errors import InputError, OutputError
from psp_rt.files import replacing
from trainer.networks import (
    MOST_CHANNELS,
    Encoder,
    EncoderConfig,
    Generator,
    GeneratorConfig,
    Translation,
)

FORMAT, VERSION = "psp_rt.trainer", 1
MOST_BLOCKS = 256  # per stage; far beyond any model
GENERATOR_SOURCE = (
    "a generator made by `python -m trainer generator`, a StyleGAN2 in rosinality's format (g_ema), "
    "an official pSp checkpoint, or a checkpoint of this trainer"
)
HINTS = {
    ".pkl": "; convert NVIDIA's stylegan2-ada .pkl first: python -m export convert FILE.pkl FILE.pt",
    ".engine": "; turn an engine back first: python -m export recover FILE.engine FILE.pt",
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The content of a checkpoint file."""

    task: str
    input_kind: str
    labels: int | None
    model: Translation
    training: dict[str, Any] = field(default_factory=dict)


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; an interrupted write leaves the file that was there before."""
    model = checkpoint.model
    content = {
        "format": FORMAT,
        "version": VERSION,
        "task": checkpoint.task,
        "input": {"kind": checkpoint.input_kind, "labels": checkpoint.labels},
        "encoder_config": asdict(model.encoder.config),
        "generator_config": asdict(model.generator.config),
        "encoder": model.encoder.state_dict(),
        "generator": model.generator.state_dict(),
        "latent_avg": model.latent_avg,
        "training": checkpoint.training,
    }
    write(path, content)


def write(path: Path, content: dict[str, Any]) -> None:
    """Write plain containers and tensors, completely or not at all."""
    try:
        with replacing(path, durable=True) as temporary, temporary.open("wb") as file:
            torch.save(content, file)
    except (OutputError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        reason = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise OutputError(
            f"cannot write {path}: {reason}; the checkpoint before it is unchanged. "
            "Free some space, then run the same command to resume"
        ) from error


def load(path: Path) -> Checkpoint:
    """Read a checkpoint that `save` wrote.

    Raises:
        InputError: It is not such a file.
    """
    return parse(read(path), name=str(path))


def read(path: Path) -> Any:
    """Return the plain containers and tensors of a file that `write` wrote.

    Raises:
        InputError: There is no such file, or it cannot be read without running code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except Exception as error:  # torch has no common error for foreign files
        raise InputError(f"{path} cannot be read as a checkpoint: {error}") from error


def parse(content: Any, *, name: str) -> Checkpoint:
    """Build the checkpoint from a loaded file; `name` is for messages."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{name} is not a checkpoint of this trainer: its format is not {FORMAT!r}")
    if type(content.get("version")) is not int or content["version"] != VERSION:
        raise InputError(f"{name} has version {content.get('version')!r:.40}; this trainer reads {VERSION}")
    try:
        encoder_config = EncoderConfig(**_parse_config(content["encoder_config"]))
        generator_config = GeneratorConfig(**_parse_config(content["generator_config"]))

        # A file may claim sizes that do not fit into memory.
        with torch.device("meta"):
            claimed = _count(Encoder.create(encoder_config).state_dict(),
                             Generator(generator_config).state_dict())  # fmt: skip
        held = _count(content["encoder"], content["generator"])
        if claimed > held:
            raise ValueError(f"its sizes are those of {claimed:,} numbers, and it holds {held:,}")

        encoder, generator = Encoder.create(encoder_config), Generator(generator_config)
        encoder.load_state_dict(content["encoder"])
        generator.load_state_dict(content["generator"])
        latent_avg: Tensor | None = content["latent_avg"]
        return Checkpoint(
            task=content["task"],
            input_kind=content["input"]["kind"],
            labels=content["input"]["labels"],
            model=Translation(encoder, generator, latent_avg).eval(),
            training=content["training"],
        )
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} is damaged or was made by another version: {error}") from error


def load_generator(path: Path) -> tuple[Generator, Tensor]:
    """Return a generator, ready to use, and its mean style [D].

    Raises:
        InputError: The file contains no StyleGAN2 in a known format.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # `args` of rosinality's files
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no common error for foreign files
        reason = " ".join(str(error).split())[:160]
        hint = HINTS.get(path.suffix.lower(), "")
        raise InputError(
            f"{path} cannot be read as a generator ({reason}); expected {GENERATOR_SOURCE}{hint}"
        ) from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}; expected {GENERATOR_SOURCE}")
    generator, mean = _parse_generator(content, path)
    for name, value in generator.state_dict().items():
        if not value.isfinite().all():
            raise InputError(f"{path} holds NaN or infinity in {name}; use an earlier file")
    generator.eval().requires_grad_(False)
    if mean is None:
        return generator, generator.mean_style()
    if not isinstance(mean, Tensor) or mean.shape[-1:] != (generator.config.style_dim,) or mean.ndim > 2:
        found = list(mean.shape) if isinstance(mean, Tensor) else f"{mean!r:.40}"
        raise InputError(
            f"{path} has the latent_avg {found}; expected numbers [{generator.config.style_dim}] or "
            f"[{generator.config.num_styles}, {generator.config.style_dim}]"
        )
    return generator, (mean.mean(dim=0) if mean.ndim == 2 else mean).float()


def _parse_generator(content: Mapping[str, Any], path: Path) -> tuple[Generator, Tensor | None]:
    # Find the tensors.
    if content.get("format") == FORMAT:
        model = parse(content, name=str(path)).model
        return model.generator, model.latent_avg
    if "g_ema" in content:
        tensors = content["g_ema"]
    elif "state_dict" in content:
        prefix = "decoder."
        tensors = {
            name.removeprefix(prefix): value
            for name, value in content["state_dict"].items()
            if name.startswith(prefix)
        }
    else:
        raise InputError(
            f"{path} holds {', '.join(map(str, list(content)[:5]))}; expected {GENERATOR_SOURCE}"
        )

    # Build the generator.
    try:
        clamp = content.get("conv_clamp")
        config = replace(_sizes(tensors), conv_clamp=None if clamp is None else float(clamp))
        generator = Generator(config)
        generator.load_state_dict(tensors)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} contains no known StyleGAN2 ({reason}); expected {GENERATOR_SOURCE}"
        ) from error
    return generator, content.get("latent_avg")


def _sizes(tensors: Mapping[str, Tensor]) -> GeneratorConfig:
    """Read the sizes of a generator from the shapes of its tensors."""
    blocks = range(
        sum(name.startswith("convs.") and name.endswith(".activate.bias") for name in tensors) // 2
    )
    channels = [len(tensors["conv1.activate.bias"])]
    channels += [len(tensors[f"convs.{2 * block + 1}.activate.bias"]) for block in blocks]
    layers = sum(name.startswith("style.") and name.endswith(".weight") for name in tensors)
    style_dim = tensors["conv1.conv.modulation.weight"].shape[1]
    return GeneratorConfig(channels=tuple(channels), style_dim=style_dim, mapping_layers=layers)


def _parse_config(stored: dict[str, Any]) -> dict[str, Any]:
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
    for name, value in values.items():
        most = MOST_BLOCKS if name == "depths" else MOST_CHANNELS
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, int) and number > most for number in numbers):
            raise ValueError(f"{name} is {value}, expected at most {most}")
    return values


def _count(*states: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for state in states for tensor in state.values())
