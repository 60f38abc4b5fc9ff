"""The whole run: photos in, checkpoints, sheets and reports out.

The run folder:

    latest.pt       see `trainer.generator.run`
    config.json     the settings, resolved
    log.jsonl       one line per report
    sheet-N.png     samples of the averaged generator after N images
    tensorboard     the same as curves, where TensorBoard is installed
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from psp_rt.errors import InputError, PspError
from trainer.data.real_photos import RealPhotos
from trainer.generator.config import GanConfig
from trainer.generator.run import Run
from trainer.generator.step import ADJUST_STEPS, Forward, draw_codes, train_step
from trainer.loop import run_folder
from trainer.loop.distributed import Team
from trainer.loop.interruptions import Interrupted, interruptions
from trainer.loop.report import Means, broken, is_due, reporting

SHEET_SAMPLES = 32
JUDGED = 256  # photos whose scores are compared with those of held-out photos


def train(
    config: GanConfig,
    photos: RealPhotos,
    *,
    team: Team,
    output: Path,
    held_out: RealPhotos | None = None,
    compiled: bool = False,
) -> Iterator[dict[str, float]]:
    """Train until `config.images`, yielding a report every few thousand images.

    If the folder has a checkpoint of this run, the run goes on from it.

    Raises:
        PspError: A number is no longer finite, or the run was stopped; `latest.pt` is a whole state.
    """
    latest = output / run_folder.LATEST
    run = open_run(config, photos, team=team, output=output)
    forward, means = Forward.of(run, compiled=compiled), Means(run.images_seen)
    shown = reporting(output, total=config.images, images_seen=run.images_seen, team=team)
    with interruptions() as asked, shown as reporter:
        while run.images_seen < config.images:
            means.add(train_step(run, forward, photos, team))
            stops = team.any_asked(asked(), step=run.step, every=ADJUST_STEPS)  # where they wait anyway
            last = stops or run.images_seen >= config.images
            reports = last or _due(run, config.report_images)
            keeps = last or _due(run, config.checkpoint_images)
            if reporter:
                reporter.progress(run.images_seen)
            if reports:
                report = _checked(means.of(run.images_seen), run, latest)
                means = Means(run.images_seen)
            if reporter and keeps:  # before anything that takes time: torchrun kills after half a minute
                run.save(latest)
                reporter.sheet(run.images_seen, [samples(run)])
            if reports:
                if held_out and not stops:
                    report["overfitting"] = overfitting(run, photos, held_out)
                if reporter:
                    reporter.report(report)
                    yield report
            if stops:
                raise Interrupted(run.images_seen, latest)


def open_run(config: GanConfig, photos: RealPhotos, *, team: Team, output: Path) -> Run:
    """Start a run in a folder, or go on with the one that is there."""
    config.pass_size(team.size)
    if team.leads:
        run_folder.open_folder(output, config.plain() | {"photos": photos.fingerprint})
    latest = output / run_folder.LATEST
    if latest.exists():
        return Run.resume(config, latest, device=team.device)
    return Run.start(config, device=team.device)


@torch.no_grad()
def overfitting(run: Run, photos: RealPhotos, held_out: RealPhotos) -> float:
    """Return how far the discriminator takes held-out photos for generated ones: 0 not at all, 1 fully.

    (E[D_train] - E[D_held_out]) / (E[D_train] - E[D_generated]), equation 1 of arXiv:2006.06676.
    """
    group = run.config.discriminator.stddev_group
    count = min(JUDGED, len(photos), len(held_out)) // group * group
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
    """Return pictures of the averaged generator, of the same latents each time, [N, 3, S, S]."""
    generator = run.average
    draws = torch.Generator().manual_seed(run.config.seed)
    z = torch.randn(SHEET_SAMPLES, generator.config.style_dim, generator=draws).to(generator.input.input)
    codes = generator.mapping(z)[:, None].expand(-1, generator.config.num_styles, -1)
    return torch.cat([generator(part) for part in codes.split(8)])


def _checked(report: dict[str, float], run: Run, latest: Path) -> dict[str, float]:
    report["augmentation"] = run.augmentation
    name = broken(report)
    if name:
        raise PspError(
            f"{name} is no longer a number after {report['images_seen']} images; {latest} is the last "
            "good state, if there is one. Start anew with a lower --learning-rate, a higher --r1-weight, "
            "or --precision fp32"
        )
    return report


def _due(run: Run, every: int) -> bool:
    return is_due(run.images_seen, batch=run.config.batch, every=every)
