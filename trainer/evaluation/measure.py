"""Measure models on every photo of a folder: similarity, LPIPS, MSE and run time.

The models take turns at each photo, so that changes of clock or load affect all alike. The run time is
that of one photo alone, from its bytes to the picture.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from psp_rt import Translator
from psp_rt.errors import InputError
from trainer import checkpoint
from trainer import recipe as recipes
from trainer.data import inputs
from trainer.data.pairs import TrainingSet
from trainer.data.photos import show_nothing
from trainer.encoder.training import pool
from trainer.loop.report import LATEST, Column, Show
from trainer.losses.identity import Identity
from trainer.losses.lpips import Lpips, enlarge
from trainer.recipe import Recipe

WARM_UP = 3  # runs of each model before the first that counts
CHUNK = 8  # photos whose pictures are compared together


@dataclass
class Figures:
    """What was measured of one model, a number per photo."""

    seconds: list[float] = field(default_factory=list)
    mse: list[float] = field(default_factory=list)
    lpips: list[float] = field(default_factory=list)
    similarity: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One model of a comparison: a run folder, a checkpoint or an engine.

    Args:
        name: Of its run folder or file.
        model: Turns inputs uint8 [N, h, w, C] into pictures [N, 3, S, S].
        recipe: How the input is made, and at which size pictures are compared.
        recorded: Whether the recipe is the run's own; otherwise it is the task's default.
        encoder: The kind of encoder.
        parameters: Of the encoder; None if not known.
        identity_sha256: Of the network of its identity loss; None without one, or if not known.
        images_seen: In training; None if not known.
    """

    name: str
    model: Callable[[Tensor], Tensor]
    recipe: Recipe
    recorded: bool
    encoder: str
    parameters: int | None = None
    identity_sha256: str | None = None
    images_seen: int | None = None

    @classmethod
    def load(cls, path: Path, device: torch.device) -> "Candidate":
        """Read a run folder, a checkpoint file of this trainer, or an engine."""
        if path.suffix.lower() == ".engine":
            return cls._of_engine(path, device)
        found = checkpoint.load(path / LATEST if path.is_dir() else path)
        training, config = found.training, found.model.encoder.config
        if "recipe" in training:
            recipe = recipes.parse(training["recipe"], name=str(path))
        else:
            recipe = _default_recipe(
                path, found.task, found.input_kind, found.labels, (config.input_height, config.input_width),
                found.model.generator.config.size,
            )  # fmt: skip
            recipe = replace(recipe, encoder=config.kind)
        model = found.model.eval().requires_grad_(False).to(device)
        encoder: torch.nn.Module = model.encoder
        encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

        def translate(sources: Tensor) -> Tensor:
            pictures: Tensor = model(inputs.to_network(sources.to(device), recipe))
            return pictures

        name = path.resolve().name if path.is_dir() else f"{path.resolve().parent.name}/{path.stem}"
        return cls(
            name=name.removesuffix("/latest"),
            model=translate,
            recipe=recipe,
            recorded="recipe" in training,
            encoder=recipe.encoder,
            parameters=sum(value.numel() for value in model.encoder.parameters()),
            identity_sha256=training.get("files", {}).get("identity"),
            images_seen=training.get("encoder", {}).get("images_seen"),
        )

    @classmethod
    def _of_engine(cls, path: Path, device: torch.device) -> "Candidate":
        """Open an engine with the runtime that deploys it."""
        name: Any = str(device)  # one of the literals that the Translator takes, or it raises an error
        translator = Translator(path, device=name, color="rgb")
        manifest = translator.manifest
        if manifest.input is None:
            raise InputError(f"{path} has no encoder, so it translates no photos")
        if manifest.output.height != manifest.output.width:
            raise InputError(f"{path} makes pictures that are not square; the trainer compares squares")
        spec = manifest.input
        recipe = _default_recipe(
            path, manifest.task, spec.kind, spec.labels, (spec.height, spec.width), manifest.output.height
        )

        def translate(sources: Tensor) -> Tensor:
            pictures = list(sources.cpu().numpy())  # [h, w, C] each
            made = translator.run(pictures if spec.kind == "rgb" else [each[:, :, 0] for each in pictures])
            return torch.stack([inputs.to_target(torch.from_numpy(each)[None])[0] for each in made]).to(
                device
            )

        return cls(name=path.name, model=translate, recipe=recipe, recorded=False, encoder="engine")

    @property
    def reads(self) -> tuple[Any, ...]:
        """What distinguishes one kind of input from another."""
        recipe = self.recipe
        return (recipe.source, recipe.kind, recipe.labels, recipe.factors, recipe.input_size)

    @torch.no_grad()
    def translate(self, sources: Tensor) -> Tensor:
        """Return the full pictures [N, 3, S, S] of inputs uint8 [N, h, w, C]."""
        return self.model(sources)

    def compared(self, pictures: Tensor) -> Tensor:
        """Return pictures as they are compared: in the range of a file, at the size of the losses."""
        return pool(pictures.float(), self.recipe.loss_size).clamp(-1, 1)


def _default_recipe(
    path: Path, task: str, kind: str, labels: int | None, input_sides: tuple[int, int], output_size: int
) -> Recipe:
    """Return the default recipe of a task in the sizes of a model."""
    if task not in recipes.TASKS:
        raise InputError(
            f"{path} has the task {task!r} but no recipe, so it is unknown how its input is made; "
            f"known tasks are {', '.join(recipes.TASKS)}"
        )
    recipe, (height, width) = recipes.default(task), input_sides
    if recipe.kind != kind or height != width:
        raise InputError(
            f"{path} reads {kind} of {height}x{width}, which is not what the recipe of {task} makes; train "
            "with `python -m trainer encoder`, which stores the recipe in the file"
        )
    factors = tuple(factor for factor in recipe.factors if factor <= height // 2)
    recipe = replace(recipe, input_size=height, labels=labels, factors=factors)
    return replace(recipe, loss_size=min(recipe.loss_size, output_size))


def check_comparable(candidates: Iterable[Candidate]) -> None:
    """Check that the pictures of all models are compared with the same targets."""
    sizes = {candidate.name: candidate.recipe.loss_size for candidate in candidates}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} at {size}x{size}" for name, size in sizes.items())
        raise InputError(
            f"these runs compare pictures of different sizes ({shown}), so their figures do not belong "
            "in one table; evaluate each size separately"
        )


class Metrics:
    """Compares pictures with their targets.

    Args:
        lpips: None omits the figure.
        identity: Likewise.
    """

    def __init__(self, lpips: Lpips | None, identity: Identity | None) -> None:
        self._lpips, self._identity = lpips, identity

    @torch.no_grad()
    def compare(self, made: Sequence[Tensor], targets: Tensor, figures: Sequence[Figures]) -> None:
        """Append the figures of each model's pictures [N, 3, S, S] against the targets, in the same shape."""
        wanted = self._lpips.features(enlarge(targets)) if self._lpips else None
        faces = self._identity.embed(targets) if self._identity else None
        for pictures, found in zip(made, figures, strict=True):
            found.mse += (pictures - targets).square().mean(dim=(1, 2, 3)).tolist()
            if self._lpips and wanted is not None:
                found.lpips += self._lpips.distance(self._lpips.features(enlarge(pictures)), wanted).tolist()
            if self._identity and faces is not None:
                found.similarity += (self._identity.embed(pictures) * faces).sum(dim=1).tolist()


def load_sets(
    candidates: Sequence[Candidate], images: Path, pairs: Path | None, *, show: Show = show_nothing
) -> list[TrainingSet]:
    """Read the photos for each model; models with the same kind of input share them."""
    if pairs and all(candidate.recipe.source != "pairs" for candidate in candidates):
        raise InputError("--pairs is given, but every run makes its inputs from the photos; leave it out")
    known: dict[tuple[object, ...], TrainingSet] = {}
    for candidate in candidates:
        if candidate.reads not in known:
            own = pairs if candidate.recipe.source == "pairs" else None
            known[candidate.reads] = TrainingSet.load(candidate.recipe, images, own, show=show)
    return [known[candidate.reads] for candidate in candidates]


def measure(
    candidates: Sequence[Candidate],
    sets: Sequence[TrainingSet],
    metrics: Metrics,
    *,
    device: torch.device,
    show: Show = show_nothing,
) -> list[Figures]:
    """Return the figures of each model over all photos of its set."""
    figures = [Figures() for _ in candidates]
    for candidate, data in zip(candidates, sets, strict=True):
        for _ in range(WARM_UP):
            timed(candidate, data.plain([0]).sources.to(device))
    total = len(sets[0])
    for start in range(0, total, CHUNK):
        numbers = range(start, min(start + CHUNK, total))
        targets = inputs.to_target(sets[0].plain(numbers).targets.to(device))
        made: list[list[Tensor]] = [[] for _ in candidates]
        for number in numbers:
            for place, (candidate, data) in enumerate(zip(candidates, sets, strict=True)):
                picture, seconds = timed(candidate, data.plain([number]).sources.to(device))
                made[place].append(candidate.compared(picture))
                figures[place].seconds.append(seconds)
        metrics.compare([torch.cat(pictures) for pictures in made], targets, figures)
        show("measuring photos", numbers.stop, total)
    return figures


def timed(candidate: Candidate, sources: Tensor) -> tuple[Tensor, float]:
    """Return the picture of one input, and the seconds until it was ready."""
    _wait(sources.device)
    started = time.perf_counter()
    picture = candidate.translate(sources)
    _wait(sources.device)
    return picture, time.perf_counter() - started


def columns(
    candidates: Sequence[Candidate], sets: Sequence[TrainingSet], numbers: Sequence[int], device: torch.device
) -> Iterator[Column]:
    """Yield the columns of a comparison sheet: each kind of input, the targets, each model's pictures."""
    kinds = {candidate.reads: (candidate, data) for candidate, data in zip(candidates, sets, strict=True)}
    for candidate, data in kinds.values():
        yield Column("input", inputs.to_picture(data.plain(numbers).sources, candidate.recipe))
    yield Column("photo", inputs.to_target(sets[0].plain(numbers).targets))
    for candidate, data in zip(candidates, sets, strict=True):
        made = [candidate.translate(data.plain([number]).sources.to(device)) for number in numbers]
        pictures = torch.cat([candidate.compared(picture).cpu() for picture in made])
        yield Column(candidate.name, pictures)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
