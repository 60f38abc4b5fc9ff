"""Ratios of run times with their uncertainty, lines of least squares, and scaling curves.

A curve is a time or a memory figure against batch, number of clones or output size, with the line that fits:

    batch     ms of a call            against the pictures of a batch
    clones    ms for as many pictures against the clones at work; 1000 / slope is the most pictures a second
    size      ms of one picture       against the megapixels of the output
    any       peak MiB                of a process with only that contender; on a GPU also its memory

The values are medians.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.measure.timing import RUNS_EACH, ContenderRun, Timing, clones_stage

RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A ratio of medians, and the interval that holds it in 95 of 100 repetitions."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Return median(above) / median(below), its interval by bootstrap (Efron, 1979)."""
    random = np.random.default_rng(0)
    low, high = np.percentile(_medians(above, random) / _medians(below, random), [2.5, 97.5]).tolist()
    return Ratio(value=float(np.median(above) / np.median(below)), low=low, high=high)


def _medians(samples: Sequence[float], random: np.random.Generator) -> np.ndarray:  # [RESAMPLES]
    drawn = random.choice(np.asarray(samples, np.float64), (RESAMPLES, len(samples)))
    medians: np.ndarray = np.median(drawn, axis=1)
    return medians


LEAST_POINTS = 3  # a line fits through any two points


@dataclass(frozen=True, kw_only=True)
class Line:
    """value = fixed + slope * x, by least squares.

    Args:
        residual: Root mean square of the residuals, over the number of points minus two.
    """

    fixed: float
    slope: float
    residual: float

    def __call__(self, x: float) -> float:
        return self.fixed + self.slope * x


def fit(xs: Sequence[float], ys: Sequence[float]) -> Line | None:
    """Return the line of least squares, or None for fewer than three points."""
    if len(set(xs)) < LEAST_POINTS:
        return None
    columns = np.stack([np.ones(len(xs)), np.asarray(xs, np.float64)], axis=1)  # [points, 2]
    (fixed, slope), *_ = np.linalg.lstsq(columns, np.asarray(ys, np.float64))
    left = np.asarray(ys) - (fixed + slope * np.asarray(xs))
    residual = float(np.sqrt(np.square(left).sum() / (len(xs) - 2)))
    return Line(fixed=float(fixed), slope=float(slope), residual=residual)


Axis = Literal["batch", "clones", "size"]
STAGES = ("encode", "generate", "end to end")
MEMORY, DEVICE_MEMORY = "peak memory", "GPU memory"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """How one figure of a contender grows.

    Args:
        model: A model's name, or the encoder's kind for the axis "size".
        what: A stage, or memory.
        unit: "ms" or "MiB".
        points: (x, value), sorted by x; for the axis "size" x is in megapixels.
        line: None for fewer than three points.
    """

    axis: Axis
    model: str
    what: str
    contender: str
    unit: Literal["ms", "MiB"]
    points: tuple[tuple[float, float], ...]
    line: Line | None


@dataclass(frozen=True, kw_only=True)
class Sized:
    """The part of a model's result that the curves of the output size use."""

    kind: str
    megapixels: float
    timings: Sequence[Timing]
    alone: Sequence[ContenderRun]


def of_model(model: str, timings: Sequence[Timing], alone: Sequence[ContenderRun]) -> Iterator[Curve]:
    """Yield the curves of batch and clones of one model."""
    measured = [timing for timing in timings if timing.samples_ms]
    contenders = dict.fromkeys(timing.contender for timing in measured)
    for name in contenders:
        mine = {
            (timing.stage, timing.batch): timing.p50_ms for timing in measured if timing.contender == name
        }
        for stage in STAGES:
            points = [(batch, ms) for (found, batch), ms in mine.items() if found == stage]
            yield from _curve("batch", model, stage, name, "ms", points)
        crews = range(1, 1 + max((timing.images for timing in measured), default=0))
        points = [(k, mine[clones_stage(k), 1] / RUNS_EACH) for k in crews if (clones_stage(k), 1) in mine]
        yield from _curve("clones", model, "end to end", name, "ms", points)
        runs = [run for run in alone if run.contender == name]
        yield from _memory("batch", model, name, [(run.batch, run) for run in runs if run.clones == 1])
        yield from _memory("clones", model, name, [(run.clones, run) for run in runs if run.batch == 1])


def of_sizes(models: Sequence[Sized]) -> Iterator[Curve]:
    """Yield the curves of the output size for each kind of encoder, from single pictures."""
    for kind in dict.fromkeys(model.kind for model in models if model.kind):
        alike = [model for model in models if model.kind == kind]
        for name in dict.fromkeys(timing.contender for model in alike for timing in model.timings):
            for stage in STAGES[1:]:
                points = [
                    (model.megapixels, timing.p50_ms)
                    for model in alike
                    for timing in model.timings
                    if (timing.contender, timing.stage, timing.batch) == (name, stage, 1)
                    and timing.samples_ms
                ]
                yield from _curve("size", kind, stage, name, "ms", points)
            runs = [
                (model.megapixels, run)
                for model in alike
                for run in model.alone
                if (run.contender, run.batch, run.clones) == (name, 1, 1)
            ]
            yield from _memory("size", kind, name, runs)


def _memory(axis: Axis, model: str, name: str, runs: Iterable[tuple[float, ContenderRun]]) -> Iterator[Curve]:
    runs = list(runs)
    yield from _curve(axis, model, MEMORY, name, "MiB", [(x, run.peak_mib) for x, run in runs])
    on_device = [(x, run.device_mib) for x, run in runs if run.device_mib is not None]
    yield from _curve(axis, model, DEVICE_MEMORY, name, "MiB", on_device)


def _curve(
    axis: Axis,
    model: str,
    what: str,
    contender: str,
    unit: Literal["ms", "MiB"],
    points: Sequence[tuple[float, float]],
) -> Iterator[Curve]:
    """Yield a curve if there is more than one point."""
    if len(points) > 1:
        ordered = tuple(sorted(points))
        line = fit([x for x, _ in ordered], [value for _, value in ordered])
        yield Curve(
            axis=axis, model=model, what=what, contender=contender, unit=unit, points=ordered, line=line
        )
