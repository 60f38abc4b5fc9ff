"""Train an encoder for a generator that stays as it is (pSp, arXiv:2008.00951, section 3).

What is measured, shown and exported is always the averaged model.
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
from trainer.encoder.run import REMEDY, Run
from trainer.loop import average, loop
from trainer.loop.average import half_precision
from trainer.loop.distributed import Team
from trainer.loop.loop import Losses
from trainer.loop.report import Column, Progress
from trainer.losses.criterion import Criterion
from trainer.recipe import Recipe

SHEET_IMAGES = 16
CALIBRATION_IMAGES = 512  # at most, and no photo more than four times
CALIBRATION_BATCH = 32
CALIBRATION_S = 5.0  # at most, when the run is stopped


class EncoderTraining:
    """An encoder's training, as the loop runs it.

    Args:
        run: The state; it changes.
        criterion: Measures how good a picture is.
        data: Pictures to learn from.
        team: Shares the work.
        validation: Pictures to measure on, never trained on.
        compiled: Compile the encoder first.
        progress: Where to show what is going on.
    """

    def __init__(
        self,
        run: Run,
        criterion: Criterion,
        data: TrainingSet,
        *,
        team: Team,
        validation: TrainingSet | None = None,
        compiled: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.run, self._criterion, self._data, self._team = run, criterion, data, team
        self._validation, self._progress = validation, progress or Progress(silent=True)
        self._encode: Callable[[Tensor], Tensor] = torch.compile(run.encoder) if compiled else run.encoder
        self._batches: Iterator[list[Batch]] | None = None
        self._calibrated_at = -1
        self._waited_s, self._since = 0.0, time.perf_counter()

    @property
    def images_seen(self) -> int:
        return self.run.images_seen

    def step(self) -> Losses:
        if self._batches is None:
            recipe = self.run.recipe
            places = range(self.run.images_seen, recipe.images, recipe.batch)
            self._batches = ahead(lambda place: load_parts(self._data, place, self._team), places)
        waiting = time.perf_counter()
        parts = next(self._batches)
        self._waited_s += time.perf_counter() - waiting
        return train_step(self.run, self._encode, self._criterion, parts, self._team)

    def evaluate(self, stop_requested: Callable[[], bool]) -> dict[str, float]:
        report = {"waited_for_data": self._waited_s / (time.perf_counter() - self._since)}
        self._progress.update("fitting the batch statistics of the averaged encoder")
        calibrate(self.run, self._data)
        self._calibrated_at = self.run.images_seen
        if self._validation and not stop_requested():
            self._progress.update(f"measuring on {len(self._validation)} held-out photos")
            report |= evaluate(self.run, self._criterion, self._validation, stop_requested=stop_requested)
        self._waited_s, self._since = 0.0, time.perf_counter()
        return report

    def sheet(self) -> list[Column]:
        return draw_sheet(self.run, self._validation or self._data)

    def save(self, path: Path) -> None:
        self.run.save(path)
        if self._calibrated_at != self.run.images_seen:
            # The run was stopped between two reports: what may be exported needs statistics, too.
            calibrate(self.run, self._data, seconds=CALIBRATION_S)
            self.run.save(path)

    def restore(self, path: Path) -> None:
        self.run.restore(path)

    def close(self) -> None:
        """End the threads that load data."""
        if self._batches is not None:
            self._batches.close()  # type: ignore[attr-defined]  # a generator


def train(
    run: Run,
    criterion: Criterion,
    data: TrainingSet,
    *,
    team: Team,
    output: Path,
    validation: TrainingSet | None = None,
    compiled: bool = False,
    progress: Progress | None = None,
) -> Iterator[dict[str, float]]:
    """Train until `recipe.images`, yielding a report every `recipe.report_images`.

    Raises:
        PspError: A number is no longer finite, or the run was stopped. `latest.pt` is a complete state.
    """
    training = EncoderTraining(
        run, criterion, data, team=team, validation=validation, compiled=compiled, progress=progress
    )
    try:
        yield from loop.run(
            training,
            total=run.recipe.images,
            report_images=run.recipe.report_images,
            folder=output,
            team=team,
            remedy=REMEDY,
            progress=progress,
        )
    finally:
        training.close()


def train_step(
    run: Run, encode: Callable[[Tensor], Tensor], criterion: Criterion, parts: list[Batch], team: Team
) -> Losses:
    """Take one optimizer step and update the average; return the means of the losses.

    Random numbers are seeded from the progress, not from what ran before, so a resumed run continues
    exactly as if it had never stopped.

    Args:
        run: Is changed.
        encode: The encoder as it is to be called, which may be compiled.
        criterion: Measures how good a picture is.
        parts: What this process learns from, in parts that fit into memory.
        team: Whose gradients are averaged.
    """
    recipe, sums = run.recipe, Losses()
    each = recipe.batch // (team.size * len(parts))

    # Losses and gradients, part by part.
    run.optimizer.zero_grad(set_to_none=True)
    for number, part in enumerate(parts):
        place = run.images_seen + (team.rank * len(parts) + number) * each
        torch.manual_seed(step_seed(recipe.seed, place))
        losses = compute_losses(run, encode, criterion, part.to(team.device))
        (losses["total"] / len(parts)).backward()
        for name, value in losses.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach() / len(parts)

    # Update the encoder and its average.
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
    return {"total": sums.pop("total"), **sums}


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
    """Return a seed that differs if any of the numbers does."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def load_parts(data: TrainingSet, place: int, team: Team) -> list[Batch]:
    """Return this process's share of a step, in parts."""
    recipe = data.recipe
    share = recipe.batch // team.size
    each = share // recipe.parts
    first = place + team.rank * share
    parts = [data.batch(first + number * each, each) for number in range(recipe.parts)]
    return [part.pinned() for part in parts] if team.device.type == "cuda" else parts


def check_share(recipe: Recipe, team: Team) -> None:
    """Check that a batch can be divided among processes and parts."""
    if recipe.batch % (team.size * recipe.parts):
        raise InputError(
            f"a batch of {recipe.batch} cannot be divided among {team.size} processes in {recipe.parts} "
            f"parts each; choose a multiple of {team.size * recipe.parts}: --set batch=..."
        )


def calibrate(run: Run, data: TrainingSet, *, seconds: float = float("inf")) -> None:
    """Measure the batch statistics of the averaged encoder, on the pictures that come next in training."""
    count = min(CALIBRATION_IMAGES, 4 * len(data))
    each = min(CALIBRATION_BATCH, count)
    last = run.images_seen + count - each  # no smaller batch at the end: it would count as much as the others

    def sources() -> Iterator[Tensor]:
        for place in range(run.images_seen, last + 1, each):
            batch = data.batch(place, each).to(run.mean_style.device)
            yield inputs.to_network(batch.sources, run.recipe)

    average.calibrate(run.model.encoder, sources(), seconds=seconds)


def pool(pictures: Tensor, size: int) -> Tensor:
    """Bring pictures [N, 3, S, S] to the size at which losses compare them."""
    if pictures.shape[2] == size:
        return pictures
    return torch.nn.functional.adaptive_avg_pool2d(pictures, size)


@torch.no_grad()
def evaluate(
    run: Run,
    criterion: Criterion,
    data: TrainingSet,
    *,
    batch: int = 8,
    stop_requested: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Return the mean losses of the averaged model over every image of a set, the same each time."""
    device, sums = run.mean_style.device, dict[str, float]()
    with torch.random.fork_rng():  # LPIPS shifts pictures at random
        torch.manual_seed(0)
        for start in range(0, len(data), batch):
            if stop_requested():
                return {}
            part = data.plain(range(start, min(start + batch, len(data)))).to(device)
            pictures, offsets = translate(run, part)
            for name, value in criterion(pictures, inputs.to_target(part.targets), offsets).items():
                sums[name] = sums.get(name, 0.0) + value.item() * len(part.targets)
    return {f"validation_{name}": value / len(data) for name, value in sums.items()}


@torch.no_grad()
def draw_sheet(run: Run, data: TrainingSet) -> list[Column]:
    """Return inputs, results and photos of some images."""
    sources, photos, pictures = [], [], []
    for index in data.spread(SHEET_IMAGES):
        part = data.plain([index]).to(run.mean_style.device)
        sources.append(inputs.to_picture(part.sources, run.recipe).cpu())
        photos.append(inputs.to_target(part.targets).cpu())
        pictures.append(translate(run, part)[0].cpu())
    return [
        Column("input", torch.cat(sources)),
        Column("photo", torch.cat(photos)),
        Column(run.recipe.task, torch.cat(pictures)),
    ]


def translate(run: Run, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the pictures of the averaged model, and its codes minus the mean style."""
    codes = run.model.encode(inputs.to_network(batch.sources, run.recipe))
    offsets = codes - run.mean_style if run.recipe.start_from_average else codes
    return pool(run.model.generator(codes), run.recipe.loss_size), offsets
