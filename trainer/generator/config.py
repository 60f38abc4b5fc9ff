"""The settings of a generator's training."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from psp_rt.errors import InputError
from trainer.networks import MOST_CHANNELS, GeneratorConfig
from trainer.networks.discriminator import DiscriminatorConfig
from trainer.recipe import read_values, typed

NUMBERS = ("learning_rate", "r1_weight", "path_weight", "mixing", "augment_target", "halflife_images")
SIZES = (16, 32, 64, 128, 256, 512, 1024)
SMALL = (  # changes for a CPU
    "size=64",
    "channels=[192, 192, 128, 64, 32]",
    "batch=16",
    "path_weight=0.0",
    "images=200000",
)


@dataclass(frozen=True, kw_only=True)
class GanConfig:
    """Settings of one run; the defaults are those of StyleGAN2 and stylegan2-ada.

    Args:
        size: Side of the pictures in pixels: 16, 32, ... 1024.
        channels: Channels of the generator at 4x4, 8x8, ...; by default those of `default_channels`.
        discriminator_channels: Likewise; by default the generator's.
        style_dim: Length of a style.
        mapping_layers: Layers from z to w.
        images: Real pictures to show in all.
        batch: Pictures per step, over all processes.
        accumulate: Passes that a process makes for one step, for batches that do not fit into memory.
        learning_rate: Of Adam, for both networks.
        r1_weight: Of the gradient penalty; None for 0.0002 * size^2 / batch (stylegan2-ada's auto).
        r1_interval: Steps between two gradient penalties, whose weight is multiplied by it.
        path_weight: Of the path-length regularization; 0 for none.
        path_interval: Steps between two of them.
        mixing: Share of codes whose later rows come from another latent.
        augment: Adapt the augmentation of what the discriminator sees.
        augment_target: Share of real pictures, minus the rest, that should be recognized as real.
        augment_images: Pictures that it takes to increase the augmentation from never to always.
        mirror: Show every second picture mirrored.
        halflife_images: Of the running average, which is what gets exported.
        precision: "bf16" computes the convolutions in bfloat16; weights stay float32.
        seed: Of all random numbers.
        report_images: Pictures between two reports, each with a checkpoint and a sheet.
    """

    size: int = 256
    channels: tuple[int, ...] = ()
    discriminator_channels: tuple[int, ...] = ()
    style_dim: int = 256
    mapping_layers: int = 4
    images: int = 1_000_000
    batch: int = 32
    accumulate: int = 1
    learning_rate: float = 2e-3
    r1_weight: float | None = None
    r1_interval: int = 16
    path_weight: float = 2.0
    path_interval: int = 4
    mixing: float = 0.9
    augment: bool = True
    augment_target: float = 0.6
    augment_images: int = 500_000
    mirror: bool = True
    halflife_images: float = 10e3
    precision: Literal["bf16", "fp32"] = "bf16"
    seed: int = 0
    report_images: int = 10_000

    def __post_init__(self) -> None:  # noqa: PLR0912  # a list of checks
        # Fill in what follows from other settings.
        channels = self.channels or default_channels(self.size)
        object.__setattr__(self, "channels", channels)
        object.__setattr__(self, "discriminator_channels", self.discriminator_channels or channels)
        if self.r1_weight is None and self.batch > 0:
            object.__setattr__(self, "r1_weight", 0.0002 * self.size**2 / self.batch)

        # Sizes.
        for name in ("channels", "discriminator_channels"):
            widths = getattr(self, name)
            if 2 ** (len(widths) + 1) != self.size:
                raise InputError(
                    f"{name} has {len(widths)} widths, which are for {2 ** (len(widths) + 1)} pixels; for "
                    f"size {self.size} give one for each of 4x4, 8x8, ... {self.size}x{self.size}"
                )
            if min(widths) < 1 or max(widths) > MOST_CHANNELS:
                raise InputError(
                    f"{name} are {list(widths)}; expected numbers from 1 to {MOST_CHANNELS} "
                    "(StyleGAN2 has at most 512)"
                )
        for name, most in {"style_dim": MOST_CHANNELS, "mapping_layers": 64}.items():
            if not 1 <= getattr(self, name) <= most:
                raise InputError(f"{name} is {getattr(self, name)}; expected 1 to {most}")

        # Numbers.
        for name in NUMBERS:
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise InputError(f"{name} is {value}; expected a finite number")
            if value is not None and value < 0 and name != "augment_target":
                raise InputError(f"{name} is {value}; expected 0 or more")
        if not 0 <= self.mixing <= 1:
            raise InputError(f"mixing is {self.mixing}; expected 0 to 1")
        counts = ("images", "batch", "accumulate", "r1_interval", "path_interval", "augment_images")
        for name in (*counts, "report_images"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed}; expected 0 to 2^63 - 1")

    @property
    def generator(self) -> GeneratorConfig:
        """Sizes of the generator."""
        return GeneratorConfig(
            channels=self.channels, style_dim=self.style_dim, mapping_layers=self.mapping_layers
        )

    @property
    def discriminator(self) -> DiscriminatorConfig:
        """Sizes of the discriminator."""
        return DiscriminatorConfig(channels=self.discriminator_channels)

    def pass_size(self, processes: int) -> int:
        """Return how many pictures one process shows in one pass."""
        parts = self.accumulate * processes
        length = self.batch // parts
        group = min(self.discriminator.stddev_group, max(length, 1))
        if length * parts != self.batch or length % group:
            raise InputError(
                f"a batch of {self.batch} cannot be divided among {processes} processes and "
                f"{self.accumulate} passes into groups of {group}; "
                f"use a multiple of {parts * group}: --set batch=..."
            )
        return length

    def plain(self) -> dict[str, Any]:
        """Return the settings as `config.json` has them."""
        own = ("channels", "discriminator_channels", "style_dim", "mapping_layers")
        settings = {name: value for name, value in asdict(self).items() if name not in own}
        networks = {"generator": asdict(self.generator), "discriminator": asdict(self.discriminator)}
        for network in networks.values():
            network["channels"] = list(network["channels"])
        return networks | settings


def default_channels(size: int) -> tuple[int, ...]:
    """Return channels at 4x4, 8x8, ... that one GPU trains in an evening: a quarter of the official work.

    >>> default_channels(128)
    (256, 256, 256, 256, 128, 64)
    """
    if size not in SIZES:
        raise InputError(f"size is {size}; expected one of {', '.join(map(str, SIZES))}")
    return tuple(min(256, 8192 >> power) for power in range(2, size.bit_length()))


def read(path: Path | None = None, changes: Iterable[str] = ()) -> GanConfig:
    """Read settings from a TOML file, if there is one, with changes like ``size=128`` applied."""
    values = read_values(path, changes)
    return GanConfig(**typed(GanConfig, values, str(path or "--set")))
