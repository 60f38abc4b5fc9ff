"""Train a StyleGAN2 generator: photos in, checkpoints, sheets and reports out."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from psp_rt.errors import InputError
from trainer.data.photos import PhotoSet
from trainer.generator.config import GanConfig
from trainer.generator.run import REMEDY, Run
from trainer.generator.step import Forward, draw_codes, train_step
from trainer.loop import loop
from trainer.loop.distributed import Team
from trainer.loop.loop import Losses
from trainer.loop.report import LATEST, Column, Progress, open_folder

SHEET_SAMPLES = 32
SCORED = 256  # photos whose scores are compared with those of held-out photos


class GeneratorTraining:
    """A generator's training, as the loop runs it.

    Args:
        run: The state; it changes.
        photos: Photos to learn from.
        team: Shares the work.
        held_out: Photos never trained on, to detect overfitting.
        compiled: Compile the networks first.
        progress: Where to show what is going on.
    """

    def __init__(
        self,
        run: Run,
        photos: PhotoSet,
        *,
        team: Team,
        held_out: PhotoSet | None = None,
        compiled: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.run, self._photos, self._team, self._held_out = run, photos, team, held_out
        self._forward = Forward.of(run, compiled=compiled)
        self._progress = progress or Progress(silent=True)

    @property
    def images_seen(self) -> int:
        return self.run.images_seen

    def step(self) -> Losses:
        losses = train_step(self.run, self._forward, self._photos, self._team)
        return {"generator_loss": losses.pop("generator_loss"), **losses}

    def evaluate(self, stop_requested: Callable[[], bool]) -> dict[str, float]:
        report = {"augmentation": self.run.augmentation}
        if self._held_out and not stop_requested():
            self._progress.update("measuring overfitting on held-out photos")
            report["overfitting"] = overfitting(self.run, self._photos, self._held_out)
        return report

    def sheet(self) -> list[Column]:
        return [Column("samples", samples(self.run))]

    def save(self, path: Path) -> None:
        self.run.save(path)

    def restore(self, path: Path) -> None:
        self.run.restore(path)


def train(
    config: GanConfig,
    photos: PhotoSet,
    *,
    team: Team,
    output: Path,
    held_out: PhotoSet | None = None,
    compiled: bool = False,
    progress: Progress | None = None,
) -> Iterator[dict[str, float]]:
    """Train until `config.images`, yielding a report every few thousand images.

    If the folder contains a checkpoint of this run, the run continues from it.

    Raises:
        PspError: A number is no longer finite, or the run was stopped. `latest.pt` is a complete state.
    """
    config.pass_size(team.size)
    if team.leads:
        open_folder(output, config.plain() | {"photos": photos.fingerprint})
    run = Run.start(config, device=team.device)
    training = GeneratorTraining(
        run, photos, team=team, held_out=held_out, compiled=compiled, progress=progress
    )
    latest = output / LATEST
    if latest.exists():
        training.restore(latest)
    yield from loop.run(
        training,
        total=config.images,
        report_images=config.report_images,
        folder=output,
        team=team,
        remedy=REMEDY,
        progress=progress,
    )


@torch.no_grad()
def overfitting(run: Run, photos: PhotoSet, held_out: PhotoSet) -> float:
    """Return how far the discriminator takes held-out photos for generated ones: 0 not at all, 1 fully.

    (E[D_train] - E[D_held_out]) / (E[D_train] - E[D_generated]), equation 1 of arXiv:2006.06676.
    """
    group = run.config.discriminator.stddev_group
    count = min(SCORED, len(photos), len(held_out)) // group * group
    if not count:
        raise InputError(f"{len(held_out)} photos are held out; expected at least {group}")
    known, unknown, made = [], [], []
    for numbers in torch.arange(count).split(8 * group):
        known.append(run.discriminator(photos.plain(numbers)))
        unknown.append(run.discriminator(held_out.plain(numbers)))
        codes = draw_codes(run.generator, len(numbers), mixing=0)
        made.append(run.discriminator(run.generator(codes, noise="random")))
    train, validation, generated = (torch.cat(scores).mean().item() for scores in (known, unknown, made))
    return (train - validation) / (train - generated) if train != generated else 0.0


@torch.no_grad()
def samples(run: Run) -> Tensor:
    """Return pictures of the averaged generator, from the same latents each time, [N, 3, S, S]."""
    generator = run.average
    draws = torch.Generator().manual_seed(run.config.seed)
    z = torch.randn(SHEET_SAMPLES, generator.config.style_dim, generator=draws).to(generator.input.input)
    codes = generator.mapping(z)[:, None].expand(-1, generator.config.num_styles, -1)
    return torch.cat([generator(part) for part in codes.split(8)])
