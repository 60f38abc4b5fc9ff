"""The state of an encoder's training, and the one file that holds it.

`latest.pt` is the averaged model as `python -m export` reads it (see `trainer.checkpoint`), with all
that a resumed run needs beside it: live weights, optimiser, progress.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from psp_rt.errors import InputError, PspError
from trainer import checkpoint
from trainer.encoder import optimizer
from trainer.networks import Encoder, Generator, Translation, draw_head_weights
from trainer.recipe import Recipe

CHANNELS_LAST: dict[str, Any] = {"memory_format": torch.channels_last}  # torch's stubs lack it


@dataclass
class Run:
    """Everything that a step changes."""

    recipe: Recipe
    encoder: Encoder  # learns
    model: Translation  # its running average with the generator, which is what gets exported
    mean_style: Tensor  # of the generator, [D]
    optimizer: torch.optim.Optimizer
    images_seen: int = 0
    files: dict[str, str] = field(default_factory=dict)  # what was named on the command line -> its hash

    @classmethod
    def start(
        cls,
        recipe: Recipe,
        generator: Generator,
        mean_style: Tensor,
        *,
        device: torch.device,
        prepare: Callable[[Encoder], None] = lambda encoder: None,
    ) -> "Run":
        """Draw the weights of a new run, the same on every device; `prepare` may replace some."""
        torch.manual_seed(recipe.seed)
        encoder = Encoder.create(recipe.encoder_config(generator.config))
        draw_head_weights(encoder)
        prepare(encoder)
        encoder.to(device, **CHANNELS_LAST)
        generator = generator.to(device).eval().requires_grad_(False)
        kept = copy.deepcopy(encoder).eval().requires_grad_(False)
        mean_style = mean_style.to(device)
        model = Translation(kept, generator, mean_style if recipe.start_from_average else None)
        descent = optimizer.create(recipe.optimizer, encoder.parameters(), learning_rate=recipe.learning_rate)
        return cls(recipe, encoder.train(), model, mean_style, descent)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint as if the run had never stopped."""
        loaded = checkpoint.load(path)
        kept = loaded.training.get("encoder")
        if kept is None:
            raise InputError(f"{path} was not made by training an encoder; choose another --output")
        try:
            self.model.encoder.load_state_dict(loaded.model.encoder.state_dict())
            self.encoder.load_state_dict(kept["encoder"])
            self.optimizer.load_state_dict(kept["optimizer"])
            self.images_seen = kept["images_seen"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{path} is damaged or was made by another version: {error}") from error

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all.

        Raises:
            PspError: The weights are no longer numbers; the file that is there stays.
        """
        self._check_finite(path)
        state = {
            "encoder": self.encoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "images_seen": self.images_seen,
        }
        content = checkpoint.Checkpoint(
            task=self.recipe.task,
            input_kind=self.recipe.kind,
            labels=self.recipe.labels,
            model=self.model,
            training={"encoder": state, "recipe": self.recipe.to_dict(), "files": self.files},
        )
        checkpoint.save(path, content)

    def _check_finite(self, path: Path) -> None:
        values: list[Tensor] = list(self.encoder.parameters())
        if not torch.stack(torch._foreach_norm(values)).isfinite().all():
            raise diverged(self.images_seen, path, "weights are")


def diverged(images_seen: int, path: Path, what: str) -> PspError:
    """Return the error of a run that learns no more."""
    state = f"{path} is the last good state" if path.exists() else "no state was saved yet"
    return PspError(
        f"the {what} no longer a number after {images_seen} images; {state}. Start anew with a lower rate, "
        "as in --set learning_rate=3e-5, or with --set precision=fp32"
    )
