"""Reading the generator that an encoder is trained for."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from psp_rt.errors import InputError
from trainer import checkpoint
from trainer.networks import Generator, GeneratorConfig

SOURCE = (
    "a generator made by `python -m trainer generator`, a StyleGAN2 in rosinality's format (g_ema), "
    "an official pSp checkpoint, or a checkpoint of this trainer"
)
HINTS = {
    ".pkl": "; convert NVIDIA's stylegan2-ada .pkl first: python -m export convert FILE.pkl FILE.pt",
    ".engine": "; turn an engine back first: python -m export recover FILE.engine FILE.pt",
}


def load(path: Path) -> tuple[Generator, Tensor]:
    """Return a generator, ready for use, and its mean style [D]."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # `args` of rosinality's files
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no common error for a file that is not its own
        reason = " ".join(str(error).split())[:160]
        hint = HINTS.get(path.suffix.lower(), "")
        raise InputError(
            f"{path} cannot be read as a generator ({reason}); expected {SOURCE}{hint}"
        ) from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}; expected {SOURCE}")
    generator, mean = _parse(content, path)
    for name, value in generator.state_dict().items():
        if not value.isfinite().all():
            raise InputError(f"{path} holds NaN or infinity in {name}; take an earlier file")
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


def sizes(tensors: Mapping[str, Tensor]) -> GeneratorConfig:
    """Read the sizes of a generator from the shapes of its tensors."""
    blocks = range(
        sum(name.startswith("convs.") and name.endswith(".activate.bias") for name in tensors) // 2
    )
    channels = [len(tensors["conv1.activate.bias"])]
    channels += [len(tensors[f"convs.{2 * block + 1}.activate.bias"]) for block in blocks]
    layers = sum(name.startswith("style.") and name.endswith(".weight") for name in tensors)
    style_dim = tensors["conv1.conv.modulation.weight"].shape[1]
    return GeneratorConfig(channels=tuple(channels), style_dim=style_dim, mapping_layers=layers)


def _parse(content: Mapping[str, Any], path: Path) -> tuple[Generator, Tensor | None]:
    if content.get("format") == checkpoint.FORMAT:
        model = checkpoint.parse(content, name=str(path)).model
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
        raise InputError(f"{path} holds {', '.join(map(str, list(content)[:5]))}; expected {SOURCE}")
    try:
        clamp = content.get("conv_clamp")
        config = replace(sizes(tensors), conv_clamp=None if clamp is None else float(clamp))
        generator = Generator(config)
        generator.load_state_dict(tensors)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} holds no StyleGAN2 that is known ({reason}); expected {SOURCE}") from error
    return generator, content.get("latent_avg")
