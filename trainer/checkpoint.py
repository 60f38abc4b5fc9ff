"""A training checkpoint: the model as it would be exported, and all that a resumed run needs.

The file is a ``torch.save`` of plain containers and tensors, so it loads with
``weights_only=True``:

    format, version      "psp_rt.trainer", 1
    task                 "sketch", "inversion", ...
    input                {"kind": "rgb" | "gray" | "labels", "labels": number or None}
    encoder_config       fields of `EncoderConfig`
    generator_config     fields of `GeneratorConfig`
    encoder, generator   state dicts; averaged over training where the trainer averages
    latent_avg           [L, D], [D] or None
    training             what only the trainer reads: live weights, optimiser, progress
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from psp_rt.errors import InputError, OutputError
from trainer.networks import (
    MOST_CHANNELS,
    Encoder,
    EncoderConfig,
    Generator,
    GeneratorConfig,
    Translation,
)

FORMAT, VERSION = "psp_rt.trainer", 1
MOST_BLOCKS = 256  # of a stage, far beyond any model


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint file holds."""

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
    """Write plain containers and tensors whole or not at all: what was there before stays until then."""
    unfinished = path.with_name(path.name + ".partial")
    try:
        with unfinished.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        unfinished.unlink(missing_ok=True)
        raise OutputError(
            f"cannot write {path}: {error}; the checkpoint before it is untouched. "
            "Free some space, then run the same command to resume"
        ) from error


def load(path: Path) -> Checkpoint:
    """Read a checkpoint that `save` wrote.

    Raises:
        InputError: Not such a file.
    """
    return parse(read(path), name=str(path))


def read(path: Path) -> Any:
    """Return the plain containers and tensors of a file that `write` wrote.

    Raises:
        InputError: No such file, or not one that can be read without running code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except Exception as error:  # torch has no common error for a file that is not its own
        raise InputError(f"{path} cannot be read as a checkpoint: {error}") from error


def parse(content: Any, *, name: str) -> Checkpoint:
    """Build the checkpoint from a loaded file; `name` is for messages."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{name} is no checkpoint of this trainer: its format is not {FORMAT!r}")
    if type(content.get("version")) is not int or content["version"] != VERSION:
        raise InputError(f"{name} has version {content.get('version')!r:.40}; this trainer reads {VERSION}")
    try:
        sizes = EncoderConfig(**_fields(content["encoder_config"]))
        generator_sizes = GeneratorConfig(**_fields(content["generator_config"]))
        with torch.device("meta"):  # a file may claim sizes that no memory holds
            claimed = _count(Encoder.create(sizes).state_dict(), Generator(generator_sizes).state_dict())
        held = _count(content["encoder"], content["generator"])
        if claimed > held:
            raise ValueError(f"its sizes are those of {claimed:,} numbers, and it holds {held:,}")
        encoder, generator = Encoder.create(sizes), Generator(generator_sizes)
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


def _fields(stored: dict[str, Any]) -> dict[str, Any]:
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
    for name, value in values.items():
        most = MOST_BLOCKS if name == "depths" else MOST_CHANNELS
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, int) and number > most for number in numbers):
            raise ValueError(f"{name} is {value}, expected at most {most}")
    return values


def _count(*states: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for state in states for tensor in state.values())
