"""Check that an engine computes what its checkpoint computes.

The engine runs through the Translator, as users will run it. PyTorch runs the trainer's networks on the
same inputs.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.checkpoints.tensors import Model
from export.errors import ParityError
from export.graphs.activations import psnr_db
from psp_rt import InputWarning, Translator
from psp_rt.engine import InputSpec
from trainer.networks import Noise, Translation

# The largest and the smallest values that figures may have. Errors of codes and styles are relative to
# their range, levels are gray levels, and PSNR compares pictures from weights stored as FP16, or computed in
# FP16, with pictures in FP32.
AT_MOST = {"codes_relative_error": 1e-4, "styles_relative_error": 1e-4, "picture_max_levels": 1.0}
AT_LEAST = {
    "fp16_weights_psnr_db": 40.0,
    "fp16_generator_psnr_db": 40.0,
    "fp16_end_to_end_psnr_db": 40.0,
}
SEEDS = (0, 1)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The model as PyTorch functions."""

    encode: Callable[[NDArray[np.uint8]], Tensor] | None  # bytes [N, H, W, C] -> codes [N, L, D]
    map: Callable[[Tensor], Tensor]  # z [N, D] -> w [N, D]
    generate: Callable[[Tensor], Tensor]  # codes [N, L, D] -> picture [N, 3, S, S] in [-1, 1]


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The results of PyTorch."""

    images: NDArray[np.uint8] | None  # [N, H, W, C] inputs of the encoder
    codes: NDArray[np.float32]  # [N, L, D] of these images, or of the seeds without an encoder
    styles: NDArray[np.float32]  # [N, D] of the seeds
    pictures: NDArray[np.float32]  # [N, H, W, 3] of the codes, in gray levels before rounding


def networks(model: Model, *, noise: Noise) -> Reference:
    """Return the trainer's networks as a reference."""
    encode, spec = None, model.input
    if model.encoder is not None and spec is not None:
        translation = Translation(model.encoder, model.generator, model.latent_avg)

        def encode(images: NDArray[np.uint8]) -> Tensor:
            return translation.encode(network_input(images, spec))

    return Reference(
        encode=encode,
        map=model.generator.mapping,
        generate=lambda codes: model.generator(codes, noise=noise),
    )


def network_input(images: NDArray[np.uint8], spec: InputSpec) -> Tensor:
    """Turn bytes [N, H, W, C] into the inputs that the network was trained on, [N, C, H, W].

    Written independently of the exported graph, because it is there to check that graph.
    """
    if spec.labels is not None:
        planes = [images[..., 0] == label for label in range(spec.labels)]
        return torch.from_numpy(np.stack(planes, axis=1).astype(np.float32))
    values = torch.from_numpy(np.moveaxis(images, 3, 1).astype(np.float32))
    return values / 127.5 - 1 if spec.kind == "rgb" else values / 255


@torch.no_grad()
def expect(reference: Reference, model: Model) -> Expected:
    """Run a reference on synthetic inputs."""
    config = model.generator.config
    draws = [
        np.random.default_rng(seed).standard_normal(config.style_dim, dtype=np.float32) for seed in SEEDS
    ]
    styles = reference.map(torch.from_numpy(np.stack(draws)))
    images = None
    codes = styles[:, None].expand(-1, config.num_styles, -1)
    if reference.encode is not None and model.input is not None:
        images = draw_images(model.input)
        codes = reference.encode(images)
    pictures = reference.generate(codes).permute(0, 2, 3, 1) * 127.5 + 127.5
    if model.output_rows is not None:
        pictures = pictures[:, slice(*model.output_rows)]
    return Expected(
        images=images,
        codes=codes.numpy().astype(np.float32),
        styles=styles.numpy(),
        pictures=pictures.clamp(0, 255).numpy(),
    )


def draw_images(spec: InputSpec) -> NDArray[np.uint8]:
    """Return a smooth and a noisy input, [2, H, W, C]."""
    top = (spec.labels or 256) - 1
    rows, columns = np.mgrid[0 : spec.height, 0 : spec.width] / (max(spec.height, spec.width) / 8)
    waves = [np.sin(columns * (1 + c / 3)) * np.cos(rows * (1 - c / 4)) for c in range(spec.channels)]
    smooth = ((np.stack(waves, axis=-1) + 1) / 2 * top).round()
    rough = np.random.default_rng(0).integers(0, top + 1, smooth.shape)
    return np.stack([smooth, rough]).astype(np.uint8)


def measure(engine: Path, expected: Expected) -> dict[str, float]:
    """Run an engine on the same inputs and return its differences from PyTorch."""
    figures = {}
    with Translator(engine, device="cpu", backend="onnxruntime", color="rgb") as translator:
        if expected.images is not None:
            images = expected.images if expected.images.shape[3] == 3 else expected.images[..., 0]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", InputWarning)  # drawn inputs are no usual pictures
                found = translator.encode(list(images))
            figures["codes_relative_error"] = relative_error(found, expected.codes)
        styles = np.stack([translator.sample(seed)[0] for seed in SEEDS])
        figures["styles_relative_error"] = relative_error(styles, expected.styles)
        pictures = translator.generate(expected.codes)
    figures["picture_max_levels"] = float(np.abs(pictures - np.floor(expected.pictures + 0.5)).max())
    figures["picture_psnr_db"] = psnr_db(pictures, expected.pictures)
    return figures


def check(figures: Mapping[str, float], *, force: bool = False) -> None:
    """Raise an error if a figure misses its bar.

    Args:
        figures: What `measure` and `fp16.compare` return.
        force: Only refuse figures that are not finite: a manifest cannot store them.

    Raises:
        ParityError: A figure is beyond its bar, or not finite.
    """
    for name, figure in figures.items():
        if not np.isfinite(figure):
            raise ParityError(
                f"the engine computes NaN or infinity: {name} is {figure}. Nothing was written; the weights "
                "are too large for the arithmetic, use another checkpoint"
            )
        most, least = AT_MOST.get(name, np.inf), AT_LEAST.get(name, -np.inf)
        if not least <= figure <= most and not force:
            bar = f"at most {most:g}" if name in AT_MOST else f"at least {least:g}"
            in_fp32 = name.startswith("fp16") and name != "fp16_weights_psnr_db"
            remedy = "export with --precision fp32, or " if in_fp32 else ""
            raise ParityError(
                f"the engine does not compute what the checkpoint computes: {name} is {figure:.3g}, "
                f"expected {bar}. Nothing was written; {remedy}to write it anyway, add --force"
            )


def relative_error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the largest difference, relative to the range of the expected values."""
    return float(np.abs(found - expected).max() / max(np.ptp(expected), 1e-12))
