"""What is to be measured: a trained model, and how its input is made."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from psp_rt.errors import InputError
from trainer import checkpoint
from trainer import recipe as tasks
from trainer.data import inputs
from trainer.encoder.review import pool
from trainer.loop.run_folder import LATEST
from trainer.networks import Translation
from trainer.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """One model of a comparison.

    Args:
        name: Of its run folder or file.
        model: Encoder and generator, averaged over training.
        recipe: Says how the input is made, and at which size pictures are compared.
        recorded: Whether the recipe is the run's own; else it is the task's default.
        identity_sha256: Of the network of its identity loss; None without one, or where not known.
        images_seen: In training; None where the file does not say.
    """

    name: str
    model: Translation
    recipe: Recipe
    recorded: bool
    identity_sha256: str | None
    images_seen: int | None

    @classmethod
    def load(cls, path: Path) -> "Entrant":
        """Read a run folder or a checkpoint file of this trainer."""
        found = checkpoint.load(path / LATEST if path.is_dir() else path)
        training = found.training
        recorded = "recipe" in training
        name = path.resolve().name if path.is_dir() else f"{path.resolve().parent.name}/{path.stem}"
        return cls(
            name=name.removesuffix("/latest"),
            model=found.model.eval().requires_grad_(False),
            recipe=tasks.parse(training["recipe"], name=str(path)) if recorded else _default(found, path),
            recorded=recorded,
            identity_sha256=training.get("files", {}).get("identity"),
            images_seen=training.get("encoder", {}).get("images_seen"),
        )

    @property
    def parameters(self) -> int:
        """Numbers that the encoder has learned."""
        return sum(value.numel() for value in self.model.encoder.parameters())

    @property
    def reads(self) -> tuple[Any, ...]:
        """What tells one kind of input from another."""
        recipe = self.recipe
        return (recipe.source, recipe.kind, recipe.labels, recipe.factors, recipe.input_size)

    def to(self, device: torch.device) -> "Entrant":
        """Return it on a device."""
        encoder: torch.nn.Module = self.model.encoder
        encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        return replace(self, model=self.model.to(device))

    @torch.no_grad()
    def translate(self, sources: Tensor) -> Tensor:
        """Return the full pictures [N, 3, S, S] of inputs uint8 [N, h, w, C]."""
        return self.model(inputs.to_network(sources, self.recipe))

    def compared(self, pictures: Tensor) -> Tensor:
        """Return pictures as they are compared: as a file would hold them, at the size of the losses."""
        return pool(pictures.float(), self.recipe.loss_size).clamp(-1, 1)


def check_comparable(entrants: Iterable[Entrant]) -> None:
    """Refuse runs whose pictures are not compared with the same targets."""
    sizes = {entrant.name: entrant.recipe.loss_size for entrant in entrants}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} at {size}x{size}" for name, size in sizes.items())
        raise InputError(
            f"these runs compare pictures of different sizes ({told}), so their figures do not belong "
            "into one table; evaluate those of each size by themselves"
        )


def _default(found: checkpoint.Checkpoint, path: Path) -> Recipe:
    """Return the default recipe of a checkpoint's task in the checkpoint's sizes."""
    if found.task not in tasks.TASKS:
        raise InputError(
            f"{path} has the task {found.task!r} but no recipe, so it is not known how its input is made; "
            f"known tasks are {', '.join(tasks.TASKS)}"
        )
    recipe, config = tasks.default(found.task), found.model.encoder.config
    if recipe.kind != found.input_kind or config.input_height != config.input_width:
        raise InputError(
            f"{path} reads {found.input_kind} of {config.input_height}x{config.input_width}, which is not "
            f"what the recipe of {found.task} makes; train with `python -m trainer encoder` to have the "
            "recipe in the file"
        )
    recipe = replace(
        recipe,
        input_size=config.input_height,
        labels=found.labels,
        factors=tuple(factor for factor in recipe.factors if factor <= config.input_height // 2),
        encoder=config.kind,
    )
    return tasks.with_sizes(recipe, found.model.generator.config)
