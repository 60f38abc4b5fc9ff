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

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psp_rt.errors import InputError, OutputError
from psp_rt.files import replacing
from trainer import checkpoint_files
from trainer.checkpoint_layout import find_networks
from trainer.checkpoint_tensors import build_generator, check_finite, conv_clamp, generator_config
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
    ".engine": "; turn an engine back first: python models/recover.py FILE.engine FILE.pt",
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
        return checkpoint_files.read(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (OSError, InputError) as error:
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
        held = _held(content["encoder"], content["generator"])
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
        content = checkpoint_files.read(path)
    except (OSError, InputError) as error:
        reason = " ".join(str(error).split())[:160]
        hint = HINTS.get(path.suffix.lower(), "")
        raise InputError(
            f"{path} cannot be read as a generator ({reason}); expected {GENERATOR_SOURCE}{hint}"
        ) from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}; expected {GENERATOR_SOURCE}")
    average = content.get("latent_avg")
    if average is not None and not isinstance(average, Tensor | np.ndarray):
        raise InputError(f"{path} has the latent_avg {average!r:.40}; expected numbers [D] or [L, D]")
    try:
        generator, mean = _parse_generator(content, path)
    except InputError as error:
        raise InputError(f"{path} contains no known StyleGAN2: {error}") from error
    for name, value in generator.state_dict().items():
        if not value.isfinite().all():
            raise InputError(f"{path} holds NaN or infinity in {name}; use an earlier file")
    if mean is None:
        return generator, generator.mean_style()
    config = generator.config
    if mean.shape[-1:] != (config.style_dim,) or mean.ndim > 2:
        raise InputError(
            f"{path} has the latent_avg {list(mean.shape)}; expected numbers [{config.style_dim}] or "
            f"[{config.num_styles}, {config.style_dim}]"
        )
    check_finite({"latent_avg": mean}, prefix=f"{path}: ")
    return generator, (mean.mean(dim=0) if mean.ndim == 2 else mean).float()


def _parse_generator(content: Mapping[str, Any], path: Path) -> tuple[Generator, Tensor | None]:
    if content.get("format") == FORMAT:
        model = parse(content, name=str(path)).model
        return model.generator.eval().requires_grad_(False), model.latent_avg
    layout = find_networks(content)
    if layout is None or layout.nvidia or not layout.generator:
        found = ", ".join(map(str, list(content)[:5]))
        hint = HINTS[".pkl"] if layout and layout.nvidia else ""
        raise InputError(f"it holds {found}; expected {GENERATOR_SOURCE}{hint}")
    config = generator_config(layout.generator, conv_clamp=conv_clamp(layout.conv_clamp))
    if layout.latent_avg is None and not config.mapping_layers:
        raise InputError(
            "it holds neither a mapping network, style.1 and so on, nor a latent_avg, so the mean style is "
            f"unknown; expected {GENERATOR_SOURCE}"
        )
    generator = build_generator(config, layout.generator, prefix=layout.generator_prefix)
    return generator, layout.latent_avg


def _parse_config(stored: dict[str, Any]) -> dict[str, Any]:
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
    for name, value in values.items():
        most = MOST_BLOCKS if name == "depths" else MOST_CHANNELS
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, int) and number > most for number in numbers):
            raise ValueError(f"{name} is {value}, expected at most {most}")
    return values


def _held(*states: Mapping[str, Tensor]) -> int:
    """Return how many numbers there is memory for; tensors may repeat the same memory."""
    memory = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() // tensor.element_size()
        for state in states
        for tensor in state.values()
    }
    return sum(memory.values())


def _count(*states: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for state in states for tensor in state.values())
