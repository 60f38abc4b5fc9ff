"""The loop of joint training: reports, checkpoints and sheets every few thousand photos."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from psp_rt.errors import OutputError, PspError
from trainer.data.joint_pairs import TASKS, Pairs, as_picture, in_parts, load
from trainer.data.photos import Batch
from trainer.joint.config import JointConfig
from trainer.joint.run import Model, Run
from trainer.joint.step import train_step
from trainer.loop.average import calibrate, spread_statistics
from trainer.loop.distributed import Team
from trainer.loop.interruptions import Interrupted, interruptions
from trainer.loop.report import Means, broken, reporting
from trainer.losses.lpips import LpipsAlex, enlarge
from trainer.networks.mapping import check_depth, set_mapping

REPORT_IMAGES = 10_000  # at least, between two reports
CALIBRATION_BATCHES = 32  # of 64 photos
SHEET_PHOTOS = 16
MEASURED = 512  # photos, for the statistics of an encoder that a run begins with
ALONE = Team(device=torch.device("cpu"))


class Start(NamedTuple):
    """A checkpoint to begin with, and the task whose encoder does; None for the checkpoint's own."""

    path: Path
    task: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Start":
        """Read FILE or TASK=FILE."""
        task, sign, path = text.partition("=")
        return cls(Path(path), task) if sign and task in TASKS else cls(Path(text))


def train(
    config: JointConfig,
    *,
    images: Path,
    validation: Path,
    output: Path,
    lpips: LpipsAlex,
    start_from: Sequence[Start] = (),
    team: Team = ALONE,
) -> Iterator[dict[str, float]]:
    """Train until `config.images`, yielding a report every few thousand photos.

    With every report, the checkpoints and a picture sheet go into `output`. If the folder has a
    checkpoint already, the run goes on from it; else from `start_from`, where given.

    Raises:
        PspError: A number is no longer finite, or the run was stopped; `latest.pt` is a whole state.
    """
    check_depth(config.generator.mapping_layers)  # now, and not when the discriminator joins in
    pairs, held_out = load_all(config, images, validation, output, team)
    latest = output / "latest.pt"
    run = open_run(config, latest, start_from, pairs, team)
    lpips.to(team.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    if not run.images_seen:
        fit_discriminator(run, pairs, lpips)

    shown = reporting(output, total=config.images, images_seen=run.images_seen, team=team)
    means, reported = Means(run.images_seen), run.images_seen
    with interruptions() as asked, shown as reporter:
        while run.images_seen < config.images:
            if config.is_adversarial(run.images_seen) and not run.mapping_set:
                start_mapping(run, pairs, team)
            run.model.train()
            losses = train_step(run, lpips, next_batches(run, pairs, team), team)
            means.add(losses)
            _check({"total": float(losses["total"])}, run, latest)
            if team.any_asked(asked()) and run.images_seen < config.images:
                if reporter:
                    stop(run, latest)
                raise Interrupted(run.images_seen, latest)
            due = run.images_seen - reported >= REPORT_IMAGES or run.images_seen >= config.images
            if reporter:
                reporter.progress(run.images_seen)
            if reporter and due:
                report = means.of(run.images_seen) | look_back(run, pairs, held_out, lpips)
                _check(report, run, latest)  # a last step can spoil what its loss does not show
                run.save(output)
                reporter.report(report)
                reporter.sheet(run.images_seen, sheet_columns(run.average, held_out))
                yield report
            if due:
                means, reported = Means(run.images_seen), run.images_seen


def load_all(
    config: JointConfig, images: Path, validation: Path, output: Path, team: Team
) -> tuple[dict[str, Pairs], dict[str, Pairs]]:
    """Read the photos to learn from and those to measure on; the leader draws, and keeps in `output`."""
    if not team.leads:
        team.wait()
    try:
        output.mkdir(parents=True, exist_ok=True)
        found = [
            load(
                folder,
                config.tasks,
                size=config.generator.size,
                input_size=config.input_size,
                seed=config.seed,
                cache=output / f"{name}-sketches.npz",
            )
            for folder, name in ((images, "train"), (validation, "validation"))
        ]
    except OSError as error:
        raise OutputError(
            f"cannot write into {output}: {error.strerror or error}; the last checkpoint in it, if any, is "
            "whole. Make room, then run the same command to resume"
        ) from error
    if team.leads:
        team.wait()
    return found[0], found[1]


def open_run(
    config: JointConfig, latest: Path, start_from: Sequence[Start], pairs: dict[str, Pairs], team: Team
) -> Run:
    """Go on with the run that is there, or start one."""
    if latest.exists():
        return Run.resume(config, latest, device=team.device)
    run = Run.start(config, device=team.device)
    for start in start_from:
        task = run.take_over(start.path, task=start.task)
        sources = spread_out(pairs[task], MEASURED).sources.to(run.device)
        for model in (run.model, run.average):
            spread_statistics(model.encoders[task], sources)
    return run


def spread_out(pairs: Pairs, count: int) -> Batch:
    """Return at most `count` pairs from the whole of a set, unvaried."""
    return pairs.plain(np.linspace(0, len(pairs) - 1, min(len(pairs), count)).astype(np.int64))


def next_batches(run: Run, pairs: dict[str, Pairs], team: Team) -> dict[str, Batch]:
    """Return what each encoder reads in this process and step: other photos for each."""
    length = run.config.batch
    first = run.images_seen + team.rank * length * len(run.config.tasks)
    return {
        task: pairs[task].batch(first + number * length, length).to(run.device)
        for number, task in enumerate(run.config.tasks)
    }


def look_back(
    run: Run, pairs: dict[str, Pairs], held_out: dict[str, Pairs], lpips: LpipsAlex
) -> dict[str, float]:
    """Make the averaged networks ready for use and measure them."""
    report: dict[str, float] = {"images_seen": run.images_seen}
    for task in run.config.tasks:
        places = range(run.images_seen, run.images_seen + 64 * CALIBRATION_BATCHES, 64)
        calibrate(
            run.average.encoders[task],
            (pairs[task].batch(place, 64).sources.to(run.device) for place in places),
        )
        measured = evaluate(run.average, task, held_out[task], lpips)
        report |= {f"{task}_held_out_{name}": value for name, value in measured.items()}
    fit_mapping(run.average, pairs)
    return report


def start_mapping(run: Run, pairs: dict[str, Pairs], team: Team) -> None:
    """Give the discriminator random pictures that are like the photos; from there on it teaches.

    Each process has seen other photos, and the root of a covariance is not the only one: the leader's counts.
    """
    fit_mapping(run.model, pairs)
    team.share(run.model.generator.style.parameters())
    run.mapping_set = True


@torch.no_grad()
def fit_mapping(model: Model, pairs: dict[str, Pairs]) -> float:
    """Make a mapping network draw styles like the mean rows of the photos; return its relative error.

    What is handed on has this one: what the discriminator had taught after 56,000 photos were styles
    whose pictures, mixed into others, were far less like faces.
    """
    task = "inversion" if "inversion" in pairs else next(iter(pairs))
    device = model.generator.input.input.device
    model.eval()
    codes = [model.encoders[task](part.sources.to(device)) for part in in_parts(pairs[task], 64)]
    return set_mapping(model.generator, torch.cat(codes).mean(dim=1))  # of styles [N, D]


@torch.no_grad()
def fit_discriminator(run: Run, pairs: dict[str, Pairs], lpips: LpipsAlex) -> None:
    """Tell the discriminator how large the feature maps of photos are."""
    photos = spread_out(pairs[run.config.tasks[0]], MEASURED // 4)
    run.discriminator.measure(lpips.maps(enlarge(photos.targets.to(run.device))))


@torch.no_grad()
def evaluate(model: Model, task: str, pairs: Pairs, lpips: LpipsAlex) -> dict[str, float]:
    """Measure L2, and LPIPS of enlarged pictures, on every held-out photo."""
    squared, perceptual = 0.0, 0.0
    device = model.generator.input.input.device
    for part in (part.to(device) for part in in_parts(pairs)):
        pictures = model.translation(task)(part.sources, noise="none")
        squared += (pictures - part.targets).square().mean(dim=(1, 2, 3)).sum().item()
        perceptual += lpips(enlarge(pictures), enlarge(part.targets)).sum().item()
    return {"l2": squared / len(pairs), "lpips": perceptual / len(pairs)}


@torch.no_grad()
def sheet_columns(model: Model, held_out: dict[str, Pairs]) -> list[Tensor]:
    """Return input and result of each task for some held-out photos, the photos, and random pictures."""
    columns: list[Tensor] = []
    device = model.generator.input.input.device
    for task, pairs in held_out.items():
        chosen = pairs.plain(np.linspace(0, len(pairs) - 1, SHEET_PHOTOS).astype(np.int64)).to(device)
        columns += [as_picture(chosen.sources, task), model.translation(task)(chosen.sources, noise="none")]
    z = torch.randn(
        len(chosen.targets), model.generator.config.style_dim, generator=torch.Generator().manual_seed(0)
    )
    codes = model.generator.mapping(z.to(device))[:, None].expand(-1, model.generator.config.num_styles, -1)
    return [*columns, chosen.targets, model.generator(codes, noise="none")]


def stop(run: Run, latest: Path) -> None:
    """Save what a resumed run needs, and measure nothing: torchrun waits for half a minute, then kills."""
    total = sum(value.detach().sum() for value in run.model.parameters())
    _check({"the sum of all weights": float(total)}, run, latest)
    run.save_state(latest)


def _check(values: dict[str, float], run: Run, latest: Path) -> None:
    name = broken(values)
    if name is None:
        return
    left = f"{latest} is the last good state" if latest.exists() else "nothing was saved before"
    raise PspError(
        f"{name} is no longer a number after {run.images_seen} images; {left}. "
        "Lower the learning rate of JointConfig and start again"
    )
