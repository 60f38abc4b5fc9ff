"""The state of a generator's training, and the one file that holds it.

``latest.pt`` is a StyleGAN2 generator in the public form, so that `python -m export` and other
tools read it as it is:

    g_ema         the averaged generator
    latent_avg    mean of many mapped latents, [D]
    training      what only a resumed run needs: live weights, optimizers, progress
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from psp_rt.errors import InputError
from trainer import checkpoint
from trainer.generator.config import GanConfig
from trainer.loop.loop import diverged
from trainer.networks import Generator
from trainer.networks.discriminator import Discriminator

REMEDY = (
    "Start a new run with a lower --set learning_rate=..., a higher --set r1_weight=..., "
    "or --set precision=fp32"
)
CHANNELS_LAST: dict[str, Any] = {"memory_format": torch.channels_last}  # torch's stubs lack it


@dataclass
class Run:
    """Everything that a step changes."""

    config: GanConfig
    generator: Generator
    discriminator: Discriminator
    average: Generator  # of the generator over training, which is what gets exported
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    path_mean: Tensor  # running mean of the path lengths, []
    signs: Tensor  # sum of the signs of real scores since the last adjustment, and their number, [2]
    augmentation: float = 0.0  # probability of each transform
    images_seen: int = 0

    @classmethod
    def start(cls, config: GanConfig, *, device: torch.device) -> "Run":
        """Initialize a new run, with the same weights on every device."""
        torch.manual_seed(config.seed)
        generator = Generator(config.generator).to(device)
        discriminator = Discriminator(config.discriminator).to(device, **CHANNELS_LAST)
        path_interval = config.path_interval if config.path_weight else 0
        return cls(
            config,
            generator,
            discriminator,
            copy.deepcopy(generator).eval().requires_grad_(False),
            lazy_adam(generator, config.learning_rate, interval=path_interval),
            lazy_adam(discriminator, config.learning_rate, interval=config.r1_interval),
            path_mean=torch.zeros((), device=device),
            signs=torch.zeros(2, device=device),
        )

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint as if the run had never stopped."""
        content = checkpoint.read(path)
        kept = content.get("training") if isinstance(content, dict) else None
        if not isinstance(kept, dict) or "discriminator" not in kept:
            raise InputError(f"{path} was not made by training a generator; choose another --output")
        try:
            self.average.load_state_dict(content["g_ema"])
            for name in ("generator", "discriminator", "generator_optimizer", "discriminator_optimizer"):
                getattr(self, name).load_state_dict(kept[name])
            self.path_mean.copy_(kept["path_mean"])
            self.signs.copy_(kept["signs"])
            self.augmentation, self.images_seen = float(kept["augmentation"]), int(kept["images_seen"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{path} is damaged or was made by another version: {error}") from error

    @property
    def step(self) -> int:
        """How many steps have been taken."""
        return self.images_seen // self.config.batch

    def save(self, path: Path) -> None:
        """Write the checkpoint, completely or not at all.

        Raises:
            PspError: The weights are no longer finite; the file that is there stays.
        """
        networks = (self.generator, self.discriminator, self.average)
        weights: list[Tensor] = [value for network in networks for value in network.parameters()]
        if not torch.stack(torch._foreach_norm(weights)).isfinite().all():
            raise diverged("the weights are", self.images_seen, path, REMEDY)
        kept = {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "generator_optimizer": self.generator_optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
            "path_mean": self.path_mean,
            "signs": self.signs,
            "augmentation": self.augmentation,
            "images_seen": self.images_seen,
        }
        content = {
            "g_ema": self.average.state_dict(),
            "latent_avg": self.average.mean_style(),
            "training": kept,
        }
        checkpoint.write(path, content)


def lazy_adam(network: nn.Module, learning_rate: float, *, interval: int) -> torch.optim.Optimizer:
    """Return Adam for a network that takes one extra step, for its regularization, every `interval` steps.

    Learning rate and betas are corrected for the extra steps (StyleGAN2, appendix B, lazy
    regularization). An interval of 0 means no such steps.
    """
    share = interval / (interval + 1) if interval else 1.0
    return torch.optim.Adam(
        network.parameters(), lr=learning_rate * share, betas=(0.0, 0.99**share), eps=1e-8, fused=True
    )
