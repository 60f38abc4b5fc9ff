"""Everything that decides the outcome of a generator's training."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from psp_rt.errors import InputError
from trainer.networks import MOST_CHANNELS, GeneratorConfig
from trainer.networks.discriminator import DiscriminatorConfig

NUMBERS = ("learning_rate", "r1_weight", "path_weight", "mixing", "augment_target", "halflife_images")
SIZES = (16, 32, 64, 128, 256, 512, 1024)


def default_channels(size: int) -> tuple[int, ...]:
    """Return channels at 4x4, 8x8, ... that one GPU trains in an evening: a quarter of the official work.

    >>> default_channels(128)
    (256, 256, 256, 256, 128, 64)
    """
    if size not in SIZES:
        raise InputError(f"the resolution is {size}; expected one of {', '.join(map(str, SIZES))}")
    return tuple(min(256, 8192 >> power) for power in range(2, size.bit_length()))


@dataclass(frozen=True, kw_only=True)
class GanConfig:
    """Settings of one run; the defaults are those of StyleGAN2 and stylegan2-ada.

    Args:
        images: How many real pictures are shown in all.
        batch: Pictures a step, over all processes.
        accumulate: Passes that a process makes for one step, for batches that do not fit into memory.
        r1_weight: Of the gradient penalty; None for 0.0002 * size^2 / batch (stylegan2-ada's auto).
        r1_interval: Steps between two gradient penalties, which then count as many times as much.
        path_weight: Of the path-length regularisation; 0 for none.
        path_interval: Steps between two of them.
        mixing: Share of codes whose later rows come from another latent.
        augment: Adapt the augmentation of what the discriminator sees.
        augment_target: Share of real pictures, minus the rest, that should be recognised as real.
        augment_images: Pictures that it takes to bring the augmentation from never to always.
        mirror: Show every second picture mirrored.
        halflife_images: Of the running average, which is what gets exported.
        precision: "bf16" computes the convolutions in bfloat16; weights stay float32.
        report_images: Pictures between two reports.
        checkpoint_images: Pictures between two checkpoints, each with a sheet of samples.
    """

    generator: GeneratorConfig
    discriminator: DiscriminatorConfig
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
    report_images: int = 4_000
    checkpoint_images: int = 20_000
    size: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", self.generator.size)
        if self.discriminator.size != self.size:
            raise InputError(
                f"the discriminator's widths are for {self.discriminator.size} pixels, the generator's for "
                f"{self.size}; give one width for each of 4x4, 8x8, ... {self.size}x{self.size}"
            )
        largest = {"style_dim": MOST_CHANNELS, "mapping_layers": 64}
        for name, most in largest.items():
            if not 1 <= getattr(self.generator, name) <= most:
                raise InputError(f"{name} is {getattr(self.generator, name)}; expected 1 to {most}")
        if max(*self.generator.channels, *self.discriminator.channels) > MOST_CHANNELS:
            raise InputError(f"a layer has more than {MOST_CHANNELS} channels; StyleGAN2 has at most 512")
        for name in NUMBERS:
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise InputError(f"{name} is {value}; expected a number")
        for name in ("images", "batch", "accumulate", "r1_interval", "path_interval", "augment_images"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.r1_weight is None:
            object.__setattr__(self, "r1_weight", 0.0002 * self.size**2 / self.batch)

    def pass_size(self, processes: int) -> int:
        """Return how many pictures one process shows in one pass."""
        parts = self.accumulate * processes
        length = self.batch // parts
        group = min(self.discriminator.stddev_group, max(length, 1))
        if length * parts != self.batch or length % group:
            raise InputError(
                f"a batch of {self.batch} cannot be split over {processes} processes and {self.accumulate} "
                f"passes into groups of {group}; give a --batch that is a multiple of {parts * group}"
            )
        return length

    def plain(self) -> dict[str, Any]:
        """Return the settings as JSON would give them back."""
        settings = asdict(self)
        for network in ("generator", "discriminator"):
            settings[network]["channels"] = list(settings[network]["channels"])
        return settings
