"""Joint training as the loop runs it: start, steps, measurements, checkpoints and sheets."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from psp_rt.errors import OutputError
from trainer.data import inputs
from trainer.data.pairs import Batch, TrainingSet, draw_sketches
from trainer.data.photos import load_photos
from trainer.joint.config import TASKS, JointConfig
from trainer.joint.run import REMEDY, Model, Run
from trainer.joint.step import Pairs, train_step
from trainer.loop import loop
from trainer.loop.average import calibrate, spread_statistics
from trainer.loop.distributed import Team
from trainer.loop.loop import Losses
from trainer.loop.report import LATEST, Column, Progress
from trainer.losses.identity import Identity
from trainer.losses.lpips import LpipsAlex, enlarge
from trainer.networks.mapping import check_depth, set_mapping

CALIBRATION_BATCHES = 32  # of 64 photos
SHEET_PHOTOS = 16
MEASURED_PHOTOS = 512  # for the statistics of an encoder that a run starts with
ALONE = Team(device=torch.device("cpu"))


class Start(NamedTuple):
    """A checkpoint to start with, and whose encoder does; None for the task of the checkpoint."""

    path: Path
    task: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Start":
        """Parse FILE or TASK=FILE."""
        task, sign, path = text.partition("=")
        return cls(Path(path), task) if sign and task in TASKS else cls(Path(text))


class JointTraining:
    """Joint training, as the loop runs it.

    Args:
        run: The state; it changes.
        data: Pictures to learn from, by task.
        held_out: Pictures to measure on, by task.
        lpips: Measures distances, and computes the discriminator's feature maps.
        identity: Compares faces, if the settings give that a weight.
        team: Shares the work.
        progress: Where to show what is going on.
    """

    def __init__(
        self,
        run: Run,
        data: dict[str, TrainingSet],
        held_out: dict[str, TrainingSet],
        lpips: LpipsAlex,
        *,
        identity: Identity | None = None,
        team: Team = ALONE,
        progress: Progress | None = None,
    ) -> None:
        self.run, self._data, self._held_out, self._lpips, self._team = run, data, held_out, lpips, team
        self._identity = identity
        self._progress = progress or Progress(silent=True)
        self._evaluated_at = -1

    @property
    def images_seen(self) -> int:
        return self.run.images_seen

    def step(self) -> Losses:
        if self.run.config.is_adversarial(self.run.images_seen) and not self.run.mapping_set:
            start_mapping(self.run, self._data, self._team)
        self.run.model.train()
        batches = next_batches(self.run, self._data, self._team)
        return train_step(self.run, self._lpips, batches, self._team, self._identity)

    def evaluate(self, stop_requested: Callable[[], bool]) -> dict[str, float]:
        report: dict[str, float] = {}
        for task in self.run.config.tasks:
            self._progress.update(f"{task}: fitting the batch statistics of the averaged encoder")
            calibrate_task(self.run, task, self._data[task], stop_requested)
            self._progress.update(f"{task}: measuring on {len(self._held_out[task])} held-out photos")
            found = evaluate(self.run.average, self._held_out[task], self._lpips, stop_requested)
            report |= {f"{task}_held_out_{name}": value for name, value in found.items()}
        if not stop_requested():
            self._progress.update("fitting the mapping network")
            fit_mapping(self.run.average, self._data)
            self._evaluated_at = self.run.images_seen
        return report

    def sheet(self) -> list[Column]:
        return sheet_columns(self.run.average, self._held_out)

    def save(self, path: Path) -> None:
        self.run.save(path)
        if self._evaluated_at == self.run.images_seen:  # what is exported must have been fitted
            self.run.save_models(path.parent)

    def restore(self, path: Path) -> None:
        self.run.restore(path)


def train(
    config: JointConfig,
    *,
    images: Path,
    validation: Path,
    output: Path,
    lpips: LpipsAlex,
    identity: Identity | None = None,
    start_from: Sequence[Start] = (),
    team: Team = ALONE,
    progress: Progress | None = None,
) -> Iterator[dict[str, float]]:
    """Train until `config.images`, yielding a report every `config.report_images`.

    If the folder contains a checkpoint, the run continues from it; otherwise it starts from `start_from`,
    if given.

    Raises:
        PspError: A number is no longer finite, or the run was stopped. `latest.pt` is a complete state.
    """
    check_depth(config.mapping_layers)  # now, rather than when the discriminator starts to take part
    progress = progress or Progress(silent=True)
    data, held_out = load_all(config, images, validation, output, team, progress)
    lpips.to(team.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    if identity is not None:
        identity.to(team.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = Run.start(config, device=team.device)
    training = JointTraining(run, data, held_out, lpips, identity=identity, team=team, progress=progress)
    latest = output / LATEST
    if latest.exists():
        training.restore(latest)
    else:
        for start in start_from:
            start_with(run, start, data)
    if not run.images_seen:
        fit_discriminator(run, data, lpips)
    yield from loop.run(
        training,
        total=config.images,
        report_images=config.report_images,
        folder=output,
        team=team,
        remedy=REMEDY,
        progress=progress,
    )


def load_all(
    config: JointConfig, images: Path, validation: Path, output: Path, team: Team, progress: Progress
) -> tuple[dict[str, TrainingSet], dict[str, TrainingSet]]:
    """Read the photos to learn from and to measure on; the leader draws the sketches, stored in `output`."""
    if not team.leads:
        team.wait()
    try:
        output.mkdir(parents=True, exist_ok=True)
        found = [
            load_sets(config, folder, cache=output / f"{name}-sketches.npz", progress=progress)
            for folder, name in ((images, "train"), (validation, "validation"))
        ]
    except OSError as error:
        raise OutputError(
            f"cannot write into {output}: {error.strerror or error}; the last checkpoint in it, if any, is "
            "complete. Make room, then run the same command to resume"
        ) from error
    if team.leads:
        team.wait()
    return found[0], found[1]


def load_sets(
    config: JointConfig, folder: Path, *, cache: Path, progress: Progress
) -> dict[str, TrainingSet]:
    """Read a folder of photos for each task; its sketches are drawn once and stored in the file `cache`."""
    photos = load_photos(folder, size=config.size, show=progress.count)
    names, found = tuple(path.name for path in photos.paths), {}
    for task in config.tasks:
        recipe, drawings = config.recipe(task), None
        if task == "sketch":
            drawings = draw_sketches(
                photos.paths, size=config.input_size, seed=config.seed, cache=cache, show=progress.count
            )
        found[task] = TrainingSet(recipe=recipe, photos=photos.pixels, names=names, drawings=drawings)
    return found


def start_with(run: Run, start: Start, data: dict[str, TrainingSet]) -> None:
    """Start a run with the networks of a checkpoint."""
    task = run.take_over(start.path, task=start.task)
    sources = to_pairs(data[task].plain(data[task].spread(MEASURED_PHOTOS)), data[task], run.device).sources
    for model in (run.model, run.average):
        spread_statistics(model.encoders[task], sources)


def to_pairs(batch: Batch, data: TrainingSet, device: torch.device) -> Pairs:
    """Turn bytes into what the networks take, on a device."""
    moved = batch.to(device)
    return Pairs(inputs.to_network(moved.sources, data.recipe), inputs.to_target(moved.targets))


def next_batches(run: Run, data: dict[str, TrainingSet], team: Team) -> dict[str, Pairs]:
    """Return what each encoder reads in this process and step: different photos for each."""
    length = run.config.batch
    first = run.images_seen + team.rank * length * len(run.config.tasks)
    return {
        task: to_pairs(data[task].batch(first + number * length, length), data[task], run.device)
        for number, task in enumerate(run.config.tasks)
    }


def calibrate_task(run: Run, task: str, data: TrainingSet, stop_requested: Callable[[], bool]) -> None:
    """Measure the batch statistics of an averaged encoder."""
    places = range(run.images_seen, run.images_seen + 64 * CALIBRATION_BATCHES, 64)
    sources = (to_pairs(data.batch(place, 64), data, run.device).sources for place in places)
    calibrate(run.average.encoders[task], sources, stop_requested=stop_requested)


def start_mapping(run: Run, data: dict[str, TrainingSet], team: Team) -> None:
    """Make random pictures similar to the photos before the discriminator sees them.

    Each process has seen other photos, and the root of a covariance is not unique: all use the leader's.
    """
    fit_mapping(run.model, data)
    team.share(run.model.generator.style.parameters())
    run.mapping_set = True


@torch.no_grad()
def fit_mapping(model: Model, data: dict[str, TrainingSet]) -> float:
    """Make a mapping network draw styles like the mean rows of the photos; return its relative error.

    The exported model has this one. With what the discriminator had taught after 56,000 photos, styles mixed
    into other pictures looked far less like faces.
    """
    task = "inversion" if "inversion" in data else next(iter(data))
    device = model.generator.input.input.device
    model.eval()
    parts = (to_pairs(part, data[task], device).sources for part in data[task].parts(64))
    codes = [model.encoders[task](sources) for sources in parts]
    return set_mapping(model.generator, torch.cat(codes).mean(dim=1))  # of styles [N, D]


@torch.no_grad()
def fit_discriminator(run: Run, data: dict[str, TrainingSet], lpips: LpipsAlex) -> None:
    """Measure how large the feature maps of photos are, for the discriminator."""
    first = data[run.config.tasks[0]]
    photos = to_pairs(first.plain(first.spread(MEASURED_PHOTOS // 4)), first, run.device).targets
    run.discriminator.measure(lpips.maps(enlarge(photos)))


@torch.no_grad()
def evaluate(
    model: Model,
    data: TrainingSet,
    lpips: LpipsAlex,
    stop_requested: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Return L2, and LPIPS of enlarged pictures, over every held-out photo."""
    squared, perceptual = 0.0, 0.0
    for batch in data.parts():
        if stop_requested():
            return {}
        part = to_pairs(batch, data, model.generator.input.input.device)
        pictures = model.translation(data.recipe.task)(part.sources, noise="none")
        squared += (pictures - part.targets).square().mean(dim=(1, 2, 3)).sum().item()
        perceptual += lpips(enlarge(pictures), enlarge(part.targets)).sum().item()
    return {"l2": squared / len(data), "lpips": perceptual / len(data)}


@torch.no_grad()
def sheet_columns(model: Model, held_out: dict[str, TrainingSet]) -> list[Column]:
    """Return input and result of each task for some held-out photos, the photos, and random pictures."""
    columns: list[Column] = []
    device = model.generator.input.input.device
    for task, data in held_out.items():
        batch = data.plain(data.spread(SHEET_PHOTOS))
        sources, photos = to_pairs(batch, data, device)
        columns.append(Column("input", inputs.to_picture(batch.sources, data.recipe)))
        columns.append(Column(task, model.translation(task)(sources, noise="none").cpu()))
    columns.append(Column("photo", photos.cpu()))

    z = torch.randn(len(photos), model.generator.config.style_dim, generator=torch.Generator().manual_seed(0))
    codes = model.generator.mapping(z.to(device))[:, None].expand(-1, model.generator.config.num_styles, -1)
    return [*columns, Column("random", model.generator(codes, noise="none").cpu())]
