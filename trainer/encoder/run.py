"""The state of an encoder's training, and the one file that holds it.

`latest.pt` is the averaged model as `python -m export` reads it (see `trainer.checkpoint`), together with
what a resumed run needs: live weights, optimizer, progress.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_optimizer import Ranger
from torch import Tensor, nn

from psp_rt.errors import InputError
from trainer import checkpoint
from trainer.loop.loop import diverged
from trainer.networks import Encoder, Generator, Translation, draw_head_weights
from trainer.recipe import Recipe

REMEDY = "Start a new run with a lower rate, as in --set learning_rate=3e-5, or with --set precision=fp32"
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
    files: dict[str, str] = field(default_factory=dict)  # option of the command line -> SHA-256

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
        """Initialize a new run, with the same weights on every device; `prepare` may replace some."""
        torch.manual_seed(recipe.seed)
        encoder = Encoder.create(recipe.encoder_config(generator.config))
        draw_head_weights(encoder)
        prepare(encoder)
        encoder.to(device, **CHANNELS_LAST)
        generator = generator.to(device).eval().requires_grad_(False)
        kept = copy.deepcopy(encoder).eval().requires_grad_(False)
        mean_style = mean_style.to(device)
        model = Translation(kept, generator, mean_style if recipe.start_from_average else None)
        optimizer = create_optimizer(
            recipe.optimizer, encoder.parameters(), learning_rate=recipe.learning_rate
        )
        return cls(recipe, encoder.train(), model, mean_style, optimizer)

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint as if the run had never stopped."""
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
        """Write the checkpoint, completely or not at all.

        Raises:
            PspError: The weights are no longer finite; the file that is there stays.
        """
        weights: list[Tensor] = list(self.encoder.parameters())
        if not torch.stack(torch._foreach_norm(weights)).isfinite().all():
            raise diverged("the weights are", self.images_seen, path, REMEDY)
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


def create_optimizer(
    name: Literal["ranger", "adam"], parameters: Iterable[nn.Parameter], *, learning_rate: float
) -> torch.optim.Optimizer:
    """Return an optimizer with the settings of the public pSp code.

    Ranger is rectified Adam (arXiv:1908.03265) whose weights are pulled back half-way every six steps
    (Lookahead, arXiv:1907.08610), with gradients centered per output (arXiv:2004.01461).
    """
    parameters = list(parameters)
    if name == "adam":
        return torch.optim.Adam(parameters, lr=learning_rate)
    return Ranger(
        parameters,
        lr=learning_rate,
        betas=(0.95, 0.999),
        eps=1e-5,
        alpha=0.5,
        k=6,
        n_sma_threshold=5,
        use_gc=True,
        # Without it the library's first five steps go up the gradient (measured with version 4.1.0).
        degenerated_to_sgd=True,
    )
