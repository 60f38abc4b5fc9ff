"""The state of a training run, and the one file that holds it.

``latest.pt`` is a StyleGAN2 generator in the public form, so that `python -m export` and other
tools read it as it is:

    g_ema         the averaged generator
    latent_avg    mean of many mapped latents, [D]
    training      what only a resumed run needs: live weights, optimisers, progress
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from psp_rt.errors import InputError, PspError
from trainer import checkpoint
from trainer.generator.config import GanConfig
from trainer.networks import Generator
from trainer.networks.discriminator import Discriminator

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
        """Draw the weights of a new run, the same on every device."""
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

    @classmethod
    def resume(cls, config: GanConfig, path: Path, *, device: torch.device) -> "Run":
        """Go on from a checkpoint as if the run had never stopped.

        Args:
            config: The settings of the run.
            path: A file that `save` wrote.
            device: Where to train.
        """
        content = checkpoint.read(path)
        kept = content.get("training") if isinstance(content, dict) else None
        if not isinstance(kept, dict) or "discriminator" not in kept:
            raise InputError(f"{path} was not made by training a generator; choose another --output")
        run = cls.start(config, device=device)
        try:
            run._restore(content["g_ema"], kept)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{path} is damaged or was made by another version: {error}") from error
        return run

    @property
    def step(self) -> int:
        """How many steps were made."""
        return self.images_seen // self.config.batch

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all.

        Raises:
            PspError: The weights are no longer numbers; the file that is there stays.
        """
        self.check_finite(path)
        content = {
            "g_ema": self.average.state_dict(),
            "latent_avg": self.average.mean_style(),
            "training": self._state(),
        }
        checkpoint.write(path, content)

    def check_finite(self, path: Path) -> None:
        """Stop a run whose weights are no longer numbers; `path` is the last good state."""
        values: list[Tensor] = [
            value for network in self._networks().values() for value in network.parameters()
        ]
        if not torch.stack(torch._foreach_norm(values)).isfinite().all():
            raise PspError(
                f"the weights are no longer numbers after {self.images_seen} images; {path} is the last good "
                "state, if there is one. Start anew with a lower --learning-rate, a higher --r1-weight, "
                "or --precision fp32"
            )

    def _networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator, "average": self.average}

    def _state(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "generator_optimizer": self.generator_optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
            "path_mean": self.path_mean,
            "signs": self.signs,
            "augmentation": self.augmentation,
            "images_seen": self.images_seen,
        }

    def _restore(self, average: dict[str, Tensor], kept: dict[str, Any]) -> None:
        self.average.load_state_dict(average)
        for name in ("generator", "discriminator", "generator_optimizer", "discriminator_optimizer"):
            getattr(self, name).load_state_dict(kept[name])
        self.path_mean.copy_(kept["path_mean"])
        self.signs.copy_(kept["signs"])
        self.augmentation, self.images_seen = float(kept["augmentation"]), int(kept["images_seen"])


def lazy_adam(network: nn.Module, learning_rate: float, *, interval: int) -> torch.optim.Optimizer:
    """Return Adam for a network that takes one more step, for its regularisation, every `interval` steps.

    Rate and memory shrink, so that they stay what they were for the steps proper (StyleGAN2,
    appendix B, lazy regularisation). An interval of 0 is for no such steps.
    """
    share = interval / (interval + 1) if interval else 1.0
    return torch.optim.Adam(
        network.parameters(), lr=learning_rate * share, betas=(0.0, 0.99**share), eps=1e-8, fused=True
    )
