"""The state of a joint training run and the files that hold it.

``latest.pt`` contains what a resumed run needs. Next to it, ``TASK.pt`` contains the averaged encoder of each
task with the averaged generator, as `python -m export` reads it.

A run may start with the networks of a smaller one (`Run.take_over`). The larger generator makes the pictures
of the smaller one, upsampled, until it learns more: the colors of its new layers are zero. A head for a new
row starts as the last one. Heads of fewer channels keep the strongest, since a model that ships has a size
limit.
"""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from psp_rt.errors import InputError
from trainer import checkpoint as checkpoints
from trainer.joint.config import TASKS, JointConfig
from trainer.joint.discriminator import FeatureDiscriminator
from trainer.loop.loop import diverged
from trainer.networks import Encoder, Generator, Translation
from trainer.networks.encoders import draw_head_weights

FORMAT = "psp_rt.joint"
REMEDY = "Lower learning_rate, as in --set learning_rate=1e-3, and start again"
NEW_LAYERS = ("convs.", "to_rgbs.", "noises.")  # of a larger generator
KEPT = ("model", "average", "discriminator", "optimizer", "discriminator_optimizer")
CPU = torch.device("cpu")
State = Mapping[str, Tensor]


class Model(nn.Module):
    """One generator and the encoders that share it."""

    def __init__(self, config: JointConfig) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({task: Encoder.create(config.encoder(task)) for task in config.tasks})
        self.generator = Generator(config.generator)
        self.encoders.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

    def translation(self, task: str) -> Translation:
        """Return the encoder of a task with the generator, which this model keeps sharing."""
        return Translation(self.encoders[task], self.generator, None)  # type: ignore[arg-type]


@dataclass
class Run:
    """Everything that a step changes."""

    config: JointConfig
    model: Model  # learns
    average: Model  # its running average, which is what gets exported
    discriminator: FeatureDiscriminator
    optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    images_seen: int = 0
    mapping_set: bool = False

    @classmethod
    def start(cls, config: JointConfig, *, device: torch.device = CPU) -> "Run":
        """Initialize a new run, with the same weights on every device."""
        torch.manual_seed(config.seed)
        model = Model(config)
        for encoder in model.encoders.values():
            draw_head_weights(encoder)  # type: ignore[arg-type]
        model.to(device)
        discriminator = FeatureDiscriminator(config.discriminator).to(device)
        return cls(
            config,
            model,
            copy.deepcopy(model).eval().requires_grad_(False),
            discriminator,
            make_optimizer(model, config),
            torch.optim.Adam(discriminator.parameters(), lr=config.discriminator_rate, betas=(0.0, 0.99)),
        )

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint as if the run had never stopped, at the rates of these settings."""
        kept = checkpoints.read(path)
        if not isinstance(kept, dict) or kept.get("format") != FORMAT:
            raise InputError(f"{path} was not made by joint training; choose another output folder")
        encoders = (name.split(".")[1] for name in kept.get("model", ()) if name.startswith("encoders."))
        trained = tuple(dict.fromkeys(encoders))
        if trained != self.config.tasks:  # another order would mix up the encoders' optimizers
            raise InputError(
                f"{path} belongs to a run of the tasks {', '.join(trained)}, in this order; name them with "
                "--task, or choose another output folder"
            )
        rates = [group["full_rate"] for group in self.optimizer.param_groups]
        try:
            for name in KEPT:
                getattr(self, name).load_state_dict(kept[name])
            self.images_seen, self.mapping_set = int(kept["images_seen"]), bool(kept["mapping_set"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(
                f"{path} belongs to a run of other sizes; choose another output folder ({error})"
            ) from error
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["full_rate"] = rate
        for group in self.discriminator_optimizer.param_groups:
            group["lr"] = self.config.discriminator_rate

    @property
    def device(self) -> torch.device:
        """The device that it trains on."""
        return self.model.generator.input.input.device

    def take_over(self, path: Path, *, task: str | None = None) -> str:
        """Start with the generator and the encoder of a checkpoint; return the task.

        The checkpoint may have smaller pictures and wider heads; all other sizes must be the same.

        Args:
            path: A checkpoint of this trainer.
            task: Whose encoder starts with it; by default the checkpoint's own.
        """
        found = checkpoints.load(path)
        task = task or found.task
        if task not in self.config.tasks:
            raise InputError(
                f"{path} is for the task {task}; this run trains {', '.join(self.config.tasks)} "
                "(--start-from TASK=FILE starts another task with it)"
            )
        for model in (self.model, self.average):
            try:
                for mine, other, fit in (
                    (model.generator, found.model.generator, grown_generator),
                    (model.encoders[task], found.model.encoder, grown_encoder),
                ):
                    mine.load_state_dict(fit(other.state_dict(), mine.state_dict()))
            except RuntimeError as error:
                raise InputError(f"{path} has other sizes than this run: {error}") from error
        return task

    def save(self, path: Path) -> None:
        """Write what a resumed run needs."""
        weights: list[Tensor] = list(self.model.parameters())
        if not torch.stack(torch._foreach_norm(weights)).isfinite().all():
            raise diverged("the weights are", self.images_seen, path, REMEDY)
        state: dict[str, Any] = {name: getattr(self, name).state_dict() for name in KEPT}
        state |= {"format": FORMAT, "images_seen": self.images_seen, "mapping_set": self.mapping_set}
        checkpoints.write(path, state)

    def save_models(self, folder: Path) -> None:
        """Write the averaged model of each task; its batch statistics must have been measured."""
        for task in self.config.tasks:
            found = checkpoints.Checkpoint(
                task=task,
                input_kind=TASKS[task],
                labels=None,
                model=self.average.translation(task),
                training={"recipe": self.config.recipe(task).to_dict(), "files": {}},
            )
            checkpoints.save(folder / f"{task}.pt", found)


def make_optimizer(model: Model, config: JointConfig) -> torch.optim.Optimizer:
    """Return Adam with a higher rate for the weights of unit size.

    The generator's weights and the last layers of the heads are scaled at run time, so a step changes them
    by a far smaller part of their size; at a common rate they hardly learn. The mapping network has a
    factor of its own.
    """
    scaled = list(model.generator.parameters())
    scaled += [value for name, value in model.encoders.named_parameters() if ".linear." in name]
    known = {id(value) for value in scaled}
    others = [value for value in model.parameters() if id(value) not in known]
    groups = [
        {"params": others, "full_rate": config.learning_rate},
        {"params": scaled, "full_rate": config.scaled_learning_rate},
    ]
    return torch.optim.Adam(groups, betas=(0.5, 0.99))


def grown_generator(found: State, wanted: State) -> dict[str, Tensor]:
    """Return the state of a generator with the layers of `wanted` that it lacks."""
    new = {name: value for name, value in wanted.items() if name not in found and name.startswith(NEW_LAYERS)}
    for name, value in new.items():
        if re.fullmatch(r"to_rgbs\.\d+\.conv\.weight", name):
            new[name] = torch.zeros_like(value)
    return {**found, **new}


def grown_encoder(found: State, wanted: State) -> dict[str, Tensor]:
    """Return the state of an encoder with as many heads as `wanted`, and as narrow."""
    rows, last = _rows(wanted), max(_rows(found), default=0)
    state = {name: value for name, value in found.items() if not name.startswith("styles.")}
    for row in rows:
        head = _head(found, min(row, last))
        narrowed = _narrowed(head, _head(wanted, row))
        state |= {f"styles.{row}.{name}": value for name, value in narrowed.items()}
    return state


def _rows(state: State) -> list[int]:
    return sorted({_number(name) for name in state if name.startswith("styles.")})


def _head(state: State, row: int) -> dict[str, Tensor]:
    prefix = f"styles.{row}."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _narrowed(head: State, wanted: State) -> dict[str, Tensor]:
    """Return a head without its weakest channels: those that contribute least to the next layer."""
    layers = sorted((name for name in head if re.fullmatch(r"convs\.\d+\.weight", name)), key=_number)
    narrow, kept = dict(head), torch.arange(head[layers[0]].shape[1])
    for layer, following in pairwise([*layers, "linear.weight"]):
        weight = head[layer][:, kept]
        reach = head[following].transpose(0, 1).flatten(1).norm(dim=1)
        strength = weight.flatten(1).norm(dim=1) * reach  # [O]
        count = min(len(strength), len(wanted.get(layer, strength)))
        kept = strength.topk(count).indices.sort().values
        bias = layer.replace("weight", "bias")
        narrow |= {layer: weight[kept], bias: head[bias][kept]}
    linear = head["linear.weight"]
    # A factor 1 / sqrt(inputs) is applied at run time.
    narrow["linear.weight"] = linear[:, kept] * (len(kept) / linear.shape[1]) ** 0.5
    return narrow


def _number(name: str) -> int:
    return int(name.split(".")[1])
