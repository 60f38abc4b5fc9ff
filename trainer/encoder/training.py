"""Train an encoder for a generator that stays as it is (pSp, arXiv:2008.00951, section 3).

The run folder:

    latest.pt       the averaged model as `python -m export` reads it, and all that a resumed run needs
    config.json     the recipe, resolved, and which files it ran with
    log.jsonl       one line per report
    sheet-N.png     inputs, photos and results after N images
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from psp_rt.errors import InputError
from trainer.data import inputs
from trainer.data.pairs import Batch, TrainingSet, ahead
from trainer.encoder.review import calibrate, draw_sheet, evaluate, pool
from trainer.encoder.run import Run, diverged
from trainer.loop import average
from trainer.loop.distributed import Team
from trainer.loop.interruptions import Interrupted, interruptions
from trainer.loop.precision import half_precision
from trainer.loop.report import Means, broken, is_due, reporting
from trainer.losses.criterion import Criterion
from trainer.recipe import Recipe

ASK_STEPS = 4

Losses = dict[str, Tensor]


def train_step(
    run: Run, encode: Callable[[Tensor], Tensor], criterion: Criterion, parts: list[Batch], team: Team
) -> Losses:
    """Take one optimizer step and update the average; return the means of the losses.

    Random numbers are seeded from the progress, not from what ran before, so a resumed run goes on
    exactly as if it had never stopped.

    Args:
        run: Is changed.
        encode: The encoder as it is to be called, which may be compiled.
        criterion: Says how good a picture is.
        parts: What this process learns from, in parts that fit into memory.
        team: Whose gradients are averaged.
    """
    recipe, sums = run.recipe, Losses()
    each = recipe.batch // (team.size * len(parts))
    run.optimizer.zero_grad(set_to_none=True)
    for number, part in enumerate(parts):
        place = run.images_seen + (team.rank * len(parts) + number) * each
        torch.manual_seed(step_seed(recipe.seed, place))
        losses = compute_losses(run, encode, criterion, part.to(team.device))
        (losses["total"] / len(parts)).backward()
        for name, value in losses.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach() / len(parts)
    team.average_gradients(run.encoder)
    run.optimizer.step()
    run.images_seen += recipe.batch
    average.update(
        run.model.encoder,
        run.encoder,
        images=recipe.batch,
        images_seen=run.images_seen,
        halflife_images=recipe.halflife_images,
    )
    return sums


def compute_losses(
    run: Run, encode: Callable[[Tensor], Tensor], criterion: Criterion, batch: Batch
) -> Losses:
    """Run encoder, generator and losses."""
    recipe = run.recipe
    sources = inputs.to_network(batch.sources, recipe).contiguous(memory_format=torch.channels_last)
    targets = inputs.to_target(batch.targets).contiguous(memory_format=torch.channels_last)
    with half_precision(sources.device, wanted=recipe.precision == "bf16"):
        offsets = encode(sources)  # [N, L, D]
        codes = offsets + run.mean_style if recipe.start_from_average else offsets
        pictures = run.model.generator(codes.float(), noise=recipe.noise).float()
        return criterion(pool(pictures, recipe.loss_size), targets, offsets)


def step_seed(*key: int) -> int:
    """Return a seed that differs wherever one of the numbers does."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def train(
    run: Run,
    criterion: Criterion,
    data: TrainingSet,
    *,
    team: Team,
    output: Path,
    validation: TrainingSet | None = None,
    compiled: bool = False,
) -> Iterator[dict[str, float]]:
    """Train until `recipe.images`, yielding a report every `recipe.report_images`.

    Raises:
        PspError: A number is no longer finite, or the run was stopped; `latest.pt` is a whole state.
    """
    recipe, latest = run.recipe, output / "latest.pt"
    encode: Callable[[Tensor], Tensor] = torch.compile(run.encoder) if compiled else run.encoder
    means = Means(run.images_seen)
    batches = ahead(lambda place: load_parts(data, place, team), places(run))
    shown = reporting(output, total=recipe.images, images_seen=run.images_seen, team=team)
    try:
        with interruptions() as asked, shown as reporter:
            while run.images_seen < recipe.images:
                waited = time.perf_counter()
                parts = next(batches)
                means.waited_s += time.perf_counter() - waited
                means.add(train_step(run, encode, criterion, parts, team))
                stops = team.any_asked(asked(), step=run.images_seen // recipe.batch, every=ASK_STEPS)
                if reporter:
                    reporter.progress(run.images_seen)
                due = is_due(run.images_seen, batch=recipe.batch, every=recipe.report_images)
                if not (stops or run.images_seen >= recipe.images or due):
                    continue
                report = means.of(run.images_seen)
                if broken(report):
                    raise diverged(run.images_seen, latest, "loss is")
                if reporter:
                    if stops:
                        run.save(latest)  # first of all: torchrun kills after half a minute
                    calibrate(run, data)
                    run.save(latest)
                    report |= evaluate(run, criterion, validation) if validation and not stops else {}
                    reporter.report(report)
                    reporter.sheet(run.images_seen, draw_sheet(run, validation or data))
                    yield report
                if stops:
                    raise Interrupted(run.images_seen, latest)
                means = Means(run.images_seen)
    finally:
        batches.close()  # type: ignore[attr-defined]  # a generator, whose threads end here


def places(run: Run) -> Iterator[int]:
    """Give the first place of every step that is left."""
    return iter(range(run.images_seen, run.recipe.images, run.recipe.batch))


def load_parts(data: TrainingSet, place: int, team: Team) -> list[Batch]:
    """Return this process's share of a step, in parts."""
    recipe = data.recipe
    share = recipe.batch // team.size
    each = share // recipe.parts
    first = place + team.rank * share
    parts = [data.batch(first + number * each, each) for number in range(recipe.parts)]
    return [part.pinned() for part in parts] if team.device.type == "cuda" else parts


def check_share(recipe: Recipe, team: Team) -> None:
    """Refuse a batch that cannot be shared out."""
    if recipe.batch % (team.size * recipe.parts):
        raise InputError(
            f"a batch of {recipe.batch} cannot be shared by {team.size} processes in {recipe.parts} "
            f"parts each; "
            f"choose a multiple of {team.size * recipe.parts}: --set batch=..."
        )
