"""Tiny models with drawn weights, in the official file format and as `export` loads them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.networks import Encoder, EncoderConfig, EncoderKind, Generator, GeneratorConfig

GENERATOR = GeneratorConfig(channels=(8, 8, 6, 4), style_dim=20, mapping_layers=3)  # 32 pixels, 8 styles
DEPTHS = (1, 2, 1, 2)
ENCODER_TYPES: dict[EncoderKind, str] = {
    "psp": "GradualStyleEncoder",
    "e4e": "Encoder4Editing",
    "w": "BackboneEncoderUsingLastLayerIntoW",
    "naive_w+": "BackboneEncoderUsingLastLayerIntoWPlus",
}


def encoder_config(kind: EncoderKind = "psp", **sizes: Any) -> EncoderConfig:
    """Return the sizes of a tiny encoder; only a pyramid's tensors tell that its input is not 256x256."""
    side = 64 if kind in ("psp", "e4e") else 256
    tiny = EncoderConfig(
        kind=kind,
        num_styles=GENERATOR.num_styles,
        style_dim=GENERATOR.style_dim,
        input_height=side,
        input_width=side,
        widths=(4, 6, 8, 10),
        depths=DEPTHS,
        head_width=10 if kind == "w" else 5,
    )
    return replace(tiny, **sizes)


def write_official(
    path: Path,
    encoder: EncoderConfig | None = None,
    generator: GeneratorConfig = GENERATOR,
    **options: Any,
) -> dict[str, np.ndarray]:
    """Write an official ``.pt`` with drawn weights and return its arrays, ``latent_avg`` among them."""
    encoder = encoder or encoder_config()
    with torch.device("meta"):
        networks = {"encoder": Encoder.create(encoder), "decoder": Generator(generator)}
    rng = np.random.default_rng(0)
    arrays = {
        f"{part}.{name}": draw(rng, name, tuple(tensor.shape))
        for part, network in networks.items()
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    rows = 1 if encoder.kind == "w" else encoder.num_styles
    average = rng.normal(size=(rows, encoder.style_dim)).astype(np.float32)
    content = {
        "state_dict": {name: torch.from_numpy(array) for name, array in arrays.items()},
        "opts": {
            "encoder_type": ENCODER_TYPES[encoder.kind],
            "start_from_latent_avg": True,
            "input_nc": encoder.input_channels,
            "learn_in_w": encoder.kind == "w",
            "stylegan_size" if encoder.kind == "e4e" else "output_size": generator.size,
            **options,
        },
        "latent_avg": torch.from_numpy(average),
    }
    torch.save(content, path)
    return {**arrays, "latent_avg": average}


def draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw a tensor whose size suits its name, none of them zero, one or symmetric."""
    values = rng.normal(size=shape)
    if name.endswith("running_var"):
        values = rng.uniform(0.5, 2, shape)
    elif name.endswith("kernel"):
        values = rng.uniform(0, 0.5, shape)  # a symmetric filter would hide a flip
    elif name.endswith("modulation.bias"):
        values = 1 + 0.2 * values
    elif len(shape) == 1:
        values = 0.3 * values  # biases, running means, noise strengths, slopes and gates' gains
        if name.endswith(".weight") and not name.endswith("noise.weight"):
            values = 0.8 + values
    elif "rgb" in name and "modulation" not in name:
        values = 0.1 * values  # most of the picture between black and white
    elif name.startswith("style."):
        values = values * 100  # the rate of the mapping network, 0.01, is a factor of its weights
    elif len(shape) == 4 and "noise" not in name and "input.input" not in name:
        values = values / np.sqrt(np.prod(shape[1:]))
    return values.astype(np.float32)
