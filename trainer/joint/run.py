"""The state of a joint training run and the files that hold it.

``latest.pt`` has what a resumed run needs. Beside it, ``TASK.pt`` holds the averaged encoder of each
task with the averaged generator, as `python -m export` reads it.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from psp_rt.errors import InputError
from trainer import checkpoint as checkpoints
from trainer.data.joint_pairs import TASKS
from trainer.joint import growing
from trainer.joint.config import JointConfig
from trainer.joint.discriminator import FeatureDiscriminator
from trainer.networks import Encoder, Generator, Translation
from trainer.networks.encoders import draw_head_weights

FORMAT = "psp_rt.joint"
CPU = torch.device("cpu")


class Model(nn.Module):
    """One generator and the encoders that share it."""

    def __init__(self, config: JointConfig) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({task: Encoder.create(config.encoder(task)) for task in config.tasks})
        self.generator = Generator(config.generator)
        self.encoders.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

    def translation(self, task: str) -> Translation:
        """Return the encoder of a task with the generator; they stay this model's."""
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
        """Draw the weights of a new run, the same on every device."""
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

    @classmethod
    def resume(cls, config: JointConfig, path: Path, *, device: torch.device = CPU) -> "Run":
        """Go on from a checkpoint as if the run had never stopped."""
        kept = checkpoints.read(path)
        if not isinstance(kept, dict) or kept.get("format") != FORMAT:
            raise InputError(f"{path} was not made by joint training; choose another output folder")
        encoders = (name.split(".")[1] for name in kept.get("model", ()) if name.startswith("encoders."))
        trained = tuple(dict.fromkeys(encoders))
        if trained != config.tasks:  # another order would give one encoder the other's optimiser
            raise InputError(
                f"{path} belongs to a run of the tasks {', '.join(trained)}, in this order; name them with "
                "--task, or choose another output folder"
            )
        run = cls.start(config, device=device)
        rates = [group["full_rate"] for group in run.optimizer.param_groups]
        try:
            for name in ("model", "average", "discriminator", "optimizer", "discriminator_optimizer"):
                getattr(run, name).load_state_dict(kept[name])
            run.images_seen, run.mapping_set = int(kept["images_seen"]), bool(kept["mapping_set"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(
                f"{path} belongs to a run of other sizes; choose another output folder ({error})"
            ) from error
        for group, rate in zip(run.optimizer.param_groups, rates, strict=True):
            group["full_rate"] = rate  # those of the settings in force, not of the checkpoint
        for group in run.discriminator_optimizer.param_groups:
            group["lr"] = config.discriminator_rate
        return run

    @property
    def device(self) -> torch.device:
        """Where it trains."""
        return self.model.generator.input.input.device

    def take_over(self, path: Path, *, task: str | None = None) -> str:
        """Begin with the generator and the encoder of a checkpoint; return the task.

        The checkpoint may be of a smaller picture and of wider heads (`growing`); all else must fit.

        Args:
            path: A checkpoint of this trainer.
            task: Whose encoder begins with it; by default the checkpoint's own.
        """
        found = checkpoints.load(path)
        task = task or found.task
        if task not in self.config.tasks:
            raise InputError(
                f"{path} is for the task {task}; this run trains {', '.join(self.config.tasks)} "
                "(--start-from TASK=FILE begins another task with it)"
            )
        for model in (self.model, self.average):
            try:
                for mine, other, fit in (
                    (model.generator, found.model.generator, growing.generator_state),
                    (model.encoders[task], found.model.encoder, growing.encoder_state),
                ):
                    mine.load_state_dict(fit(other.state_dict(), mine.state_dict()))
            except RuntimeError as error:
                raise InputError(f"{path} has other sizes than this run: {error}") from error
        return task

    def save_state(self, path: Path) -> None:
        """Write the checkpoint."""
        state: dict[str, Any] = {"format": FORMAT}
        for name in ("model", "average", "discriminator", "optimizer", "discriminator_optimizer"):
            state[name] = getattr(self, name).state_dict()
        state |= {"images_seen": self.images_seen, "mapping_set": self.mapping_set}
        checkpoints.write(path, state)

    def save(self, folder: Path) -> None:
        """Write the checkpoint and the model of each task, whose batch statistics must fit by now."""
        self.save_state(folder / "latest.pt")
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

    The generator's weights and the heads' last layers are scaled at run time, so a step moves them
    by a far smaller part of their size; at one rate for all, they hardly learn. The mapping network
    has a factor of its own.
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
