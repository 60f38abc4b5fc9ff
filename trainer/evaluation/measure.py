"""Measure models on every photo of a folder: similarity, LPIPS, MSE and run time.

The models take turns at each photo, so that a change of clock or load touches all alike. A run time
is that of one photo alone, from its bytes on the device to the picture, waited for.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from psp_rt.errors import InputError
from trainer.data import inputs
from trainer.data.pairs import TrainingSet
from trainer.evaluation.entrants import Entrant
from trainer.losses.identity import Identity
from trainer.losses.lpips import Lpips, enlarge

WARM_UP = 3  # runs of each model before the first that counts
CHUNK = 8  # photos whose pictures are compared together


@dataclass
class Figures:
    """What was measured of one model, a number for each photo."""

    seconds: list[float] = field(default_factory=list)
    mse: list[float] = field(default_factory=list)
    lpips: list[float] = field(default_factory=list)
    similarity: list[float] = field(default_factory=list)


class Judge:
    """Compare pictures with their targets.

    Args:
        lpips: None leaves the figure out.
        identity: Likewise.
    """

    def __init__(self, lpips: Lpips | None, identity: Identity | None) -> None:
        self._lpips, self._identity = lpips, identity

    @torch.no_grad()
    def compare(self, candidates: Sequence[Tensor], targets: Tensor, figures: Sequence[Figures]) -> None:
        """Note how far the candidates [N, 3, S, S] of each model are from targets of that shape."""
        wanted = self._lpips.features(enlarge(targets)) if self._lpips else None
        faces = self._identity.embed(targets) if self._identity else None
        for pictures, noted in zip(candidates, figures, strict=True):
            noted.mse += (pictures - targets).square().mean(dim=(1, 2, 3)).tolist()
            if self._lpips and wanted is not None:
                noted.lpips += self._lpips.distance(self._lpips.features(enlarge(pictures)), wanted).tolist()
            if self._identity and faces is not None:
                noted.similarity += (self._identity.embed(pictures) * faces).sum(dim=1).tolist()


def load_sets(entrants: Sequence[Entrant], images: Path, pairs: Path | None) -> list[TrainingSet]:
    """Read the photos for each model; models with the same kind of input share them."""
    if pairs and all(entrant.recipe.source != "pairs" for entrant in entrants):
        raise InputError("--pairs is given, but every run makes its inputs from the photos; leave it out")
    known: dict[tuple[object, ...], TrainingSet] = {}
    for entrant in entrants:
        if entrant.reads not in known:
            own = pairs if entrant.recipe.source == "pairs" else None
            known[entrant.reads] = TrainingSet.load(entrant.recipe, images, own)
    return [known[entrant.reads] for entrant in entrants]


def measure(
    entrants: Sequence[Entrant],
    sets: Sequence[TrainingSet],
    judge: Judge,
    *,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Figures]:
    """Return the figures of each model over all photos of its set."""
    figures = [Figures() for _ in entrants]
    for entrant, data in zip(entrants, sets, strict=True):
        for _ in range(WARM_UP):
            timed(entrant, data.plain([0]).sources.to(device))
    total = len(sets[0])
    for start in range(0, total, CHUNK):
        numbers = range(start, min(start + CHUNK, total))
        targets = inputs.to_target(sets[0].plain(numbers).targets.to(device))
        made: list[list[Tensor]] = [[] for _ in entrants]
        for number in numbers:
            for place, (entrant, data) in enumerate(zip(entrants, sets, strict=True)):
                picture, seconds = timed(entrant, data.plain([number]).sources.to(device))
                made[place].append(entrant.compared(picture))
                figures[place].seconds.append(seconds)
        judge.compare([torch.cat(pictures) for pictures in made], targets, figures)
        progress(numbers.stop, total)
    return figures


def timed(entrant: Entrant, sources: Tensor) -> tuple[Tensor, float]:
    """Return the picture of one input, and the seconds until it was there."""
    _wait(sources.device)
    started = time.perf_counter()
    picture = entrant.translate(sources)
    _wait(sources.device)
    return picture, time.perf_counter() - started


def columns(
    entrants: Sequence[Entrant], sets: Sequence[TrainingSet], numbers: Sequence[int], device: torch.device
) -> Iterator[Tensor]:
    """Give the columns of a comparison sheet: each kind of input, the targets, each model's pictures."""
    size = entrants[0].recipe.loss_size
    kinds = {entrant.reads: (entrant, data) for entrant, data in zip(entrants, sets, strict=True)}
    for entrant, data in kinds.values():
        shown = inputs.to_picture(data.plain(numbers).sources, entrant.recipe)
        yield torch.nn.functional.interpolate(shown, size=(size, size), mode="nearest")
    yield inputs.to_target(sets[0].plain(numbers).targets)
    for entrant, data in zip(entrants, sets, strict=True):
        made = [entrant.translate(data.plain([number]).sources.to(device)) for number in numbers]
        yield torch.cat([entrant.compared(picture).cpu() for picture in made])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
