"""The loop of joint training: reports, checkpoints and sheets every few thousand photos."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from psp_rt.errors import OutputError, PspError
from trainer import sheet
from trainer.average import calibrate
from trainer.data import Batch
from trainer.joint.config import JointConfig
from trainer.joint.pairs import Pairs, as_picture, in_parts, load
from trainer.joint.run import Model, Run
from trainer.joint.step import train_step
from trainer.losses.lpips import LpipsAlex, enlarge
from trainer.mapping import check_depth, set_mapping
from trainer.team import Team

REPORT_IMAGES = 10_000  # at least, between two reports
CALIBRATION_BATCHES = 32  # of 64 photos
SHEET_ROWS = 8
ALONE = Team(device=torch.device("cpu"))


def train(
    config: JointConfig,
    *,
    images: Path,
    validation: Path,
    output: Path,
    lpips: LpipsAlex,
    start_from: Sequence[Path] = (),
    team: Team = ALONE,
) -> Iterator[dict[str, float]]:
    """Train until `config.images`, yielding a report every few thousand photos.

    With every report, the checkpoints and a picture sheet go into `output`. If the folder has a
    checkpoint already, the run goes on from it; else from `start_from`, where given.
    """
    check_depth(config.generator.mapping_layers)  # now, and not when the discriminator joins in
    with _writing_into(output):
        output.mkdir(parents=True, exist_ok=True)
        size = config.generator.size
        pairs = load(images, config.tasks, size=size, seed=config.seed, cache=output / "train-sketches.npz")
        held_out = load(
            validation,
            config.tasks,
            size=size,
            seed=config.seed,
            cache=output / "validation-sketches.npz",
        )
    latest = output / "latest.pt"
    run = (
        Run.resume(config, latest, device=team.device)
        if latest.exists()
        else Run.start(config, device=team.device)
    )
    for path in start_from if not latest.exists() else ():
        run.take_over(path)
    lpips.to(team.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

    reported, started, sums = run.images_seen, time.perf_counter(), dict[str, float]()
    while run.images_seen < config.images:
        if config.is_adversarial(run.images_seen) and not run.mapping_set:
            fit_mapping(run, pairs)
        run.model.train()
        before = run.images_seen
        losses = train_step(run, lpips, next_batches(run, pairs, team), team)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.item() * (run.images_seen - before)
        if not np.isfinite(sums["total"]):
            raise _diverged(run.images_seen, latest)
        count = run.images_seen - reported
        if not team.leads or (count < REPORT_IMAGES and run.images_seen < config.images):
            continue
        report = {name: value / count for name, value in sums.items()}
        report |= look_back(run, pairs, held_out, lpips)
        if not np.isfinite(list(report.values())).all():  # a last step can spoil what its loss does not show
            raise _diverged(run.images_seen, latest)
        report["images_per_second"] = count / (time.perf_counter() - started)
        if run.images_seen >= config.images and not run.mapping_set:
            fit_mapping(run, pairs)
        run.save(output)
        with _writing_into(output):
            draw_sheet(run.average, held_out, output / f"sheet-{run.images_seen // 1000 * 1000}.png")
            with (output / "log.jsonl").open("a") as log:
                log.write(json.dumps(report) + "\n")
        yield report
        reported, started, sums = run.images_seen, time.perf_counter(), {}


def next_batches(run: Run, pairs: dict[str, Pairs], team: Team) -> dict[str, Batch]:
    """Return what each encoder reads in this process and step: other photos for each."""
    length = run.config.batch
    first = run.images_seen + team.rank * length * len(run.config.tasks)
    return {
        task: pairs[task].batch(first + number * length, length)
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
    return report


@torch.no_grad()
def fit_mapping(run: Run, pairs: dict[str, Pairs]) -> float:
    """Make the mapping network draw styles like the mean rows of the photos; return its relative error.

    From there on the discriminator teaches it.
    """
    task = "inversion" if "inversion" in pairs else run.config.tasks[0]
    run.model.eval()
    codes = [run.model.encoders[task](part.sources.to(run.device)) for part in in_parts(pairs[task], 64)]
    styles = torch.cat(codes).mean(dim=1)  # [N, D]
    error = set_mapping(run.model.generator, styles)
    run.average.generator.style.load_state_dict(run.model.generator.style.state_dict())
    run.mapping_set = True
    return error


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
def draw_sheet(model: Model, held_out: dict[str, Pairs], path: Path) -> None:
    """Write input and result of each task for some held-out photos, the photos, and random pictures."""
    columns: list[Tensor] = []
    device = model.generator.input.input.device
    for task, pairs in held_out.items():
        chosen = pairs.plain(np.linspace(0, len(pairs) - 1, 2 * SHEET_ROWS).astype(np.int64)).to(device)
        columns += [as_picture(chosen.sources, task), model.translation(task)(chosen.sources, noise="none")]
    z = torch.randn(
        len(chosen.targets), model.generator.config.style_dim, generator=torch.Generator().manual_seed(0)
    )
    codes = model.generator.mapping(z.to(device))[:, None].expand(-1, model.generator.config.num_styles, -1)
    sheet.write(path, [*columns, chosen.targets, model.generator(codes, noise="none")], rows=SHEET_ROWS)


@contextmanager
def _writing_into(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write into {folder}: {error.strerror or error}; the last checkpoint in it, if any, is "
            "whole. Make room, then run the same command to resume"
        ) from error


def _diverged(images_seen: int, latest: Path) -> PspError:
    left = f"{latest} is the last good state" if latest.exists() else "nothing was saved before"
    return PspError(
        f"the loss is no longer a number after {images_seen} images; {left}. "
        "Lower the learning rate of JointConfig and start again"
    )
