"""The setups of benchmarks/training.py: sizes, files and the loops of each task."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from benchmarks.training_speed import drawn_files
from benchmarks.training_speed import loops as training_loops
from benchmarks.training_speed.loops import Files, PlainEncoderLoop, PlainGeneratorLoop, Spent
from benchmarks.training_speed.sizes import SMALL, TINY, TINY_GENERATOR
from trainer.cli import encoder as encoder_command
from trainer.generator.config import GanConfig, default_channels
from trainer.joint.config import small_generator
from trainer.loop.average import computes_bf16
from trainer.networks import Generator, GeneratorConfig, official_channels
from trainer.recipe import Recipe

PLAIN = "plain PyTorch, fp32"
SMALL_GENERATOR = small_generator(64)


class Loop(Protocol):
    """One way to train."""

    spent: Spent

    def steps(self, count: int) -> None:
        """Take steps, and return when they are done."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is trained."""

    generator: GeneratorConfig
    changes: tuple[str, ...]  # of the recipes
    gan: GanConfig
    photo_size: int
    photos: int


def chosen_sizes(args: argparse.Namespace) -> Sizes:
    """Return the networks and photos of a run."""
    batch = () if args.batch is None else (f"batch={args.batch}",)
    if args.quick:
        return Sizes(generator=TINY_GENERATOR, changes=(*TINY, *batch), gan=_gan((8, 8, 8, 8), 4),
                     photo_size=64, photos=8)  # fmt: skip
    if args.small:
        return Sizes(generator=SMALL_GENERATOR, changes=(*SMALL, *batch),
                     gan=_gan(SMALL_GENERATOR.channels, args.batch or 32),
                     photo_size=256, photos=128)  # fmt: skip
    return Sizes(
        generator=GeneratorConfig(channels=official_channels(1024)),
        changes=batch,
        gan=_gan(default_channels(256), args.batch or 32),
        photo_size=1024,
        photos=128,
    )


def encoder_loops(
    recipe: Recipe, sizes: Sizes, files: Files, identity: Path | None, folder: Path, device: torch.device
) -> dict[str, Loop]:
    """Return the ways to train an encoder."""
    torch.manual_seed(0)
    generator = Generator(sizes.generator).eval()
    features, heads = drawn_files.lpips(folder)
    named = dict.fromkeys(encoder_command.Files.__dataclass_fields__)
    named |= {"lpips_features": features, "lpips_heads": heads}
    named |= {"identity": identity or drawn_files.identity(folder / "identity.ckpt")}
    criterion = encoder_command.load_criterion(recipe, encoder_command.Files(**named)).to(device)
    ours = training_loops.OurEncoderLoop
    loops: dict[str, Loop] = {
        f"ours, {name}": ours(replace(recipe, precision=name), generator, criterion, files, device)
        for name in precisions(device)
    }
    return loops | {PLAIN: PlainEncoderLoop(recipe, generator, criterion, files, device)}


def generator_loops(sizes: Sizes, files: Files, device: torch.device) -> dict[str, Loop]:
    """Return the ways to train a generator, without augmentation and path lengths, which only we have."""
    ours = training_loops.OurGeneratorLoop
    loops: dict[str, Loop] = {
        f"ours, {name}": ours(replace(sizes.gan, precision=name), files, device)
        for name in precisions(device)
    }
    return loops | {PLAIN: PlainGeneratorLoop(sizes.gan, files, device)}


def precisions(device: torch.device) -> tuple[Literal["bf16", "fp32"], ...]:
    """Return what training may compute in: on a processor without BF16, FP32 would be measured twice."""
    return ("bf16", "fp32") if computes_bf16(device) else ("fp32",)


def plain_sizes(sizes: Sizes) -> dict[str, Any]:
    """Return the sizes as JSON has them."""
    return {
        "generator": list(sizes.generator.channels),
        "recipe_changes": list(sizes.changes),
        "gan": sizes.gan.plain(),
        "photos": sizes.photos,
        "photo_size": sizes.photo_size,
    }


def _gan(channels: tuple[int, ...], batch: int) -> GanConfig:
    return GanConfig(
        size=2 ** (len(channels) + 1),
        channels=channels,
        style_dim=256,
        mapping_layers=4,
        batch=batch,
        augment=False,
        path_weight=0.0,
    )
