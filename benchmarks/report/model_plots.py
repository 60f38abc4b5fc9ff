"""The plots of one model: how its times are spread, what they are made of, how far the limit is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from benchmarks.measure.limit import GRAPHS
from benchmarks.measure.timing import Timing
from benchmarks.report.plots import INK, QUOTED, as_svg, color, name_rows, panels, rows_height_in
from benchmarks.report.result import ModelResult

MARKERS = {"encode": "o", "generate": "s", "end to end": "D"}
SHADES = {"read": 0.15, "upload": 0.3, "encode": 0.5, "generate": 0.95, "download": 0.3}
JITTER = 0.22  # of a row's height, so that equal times do not hide each other


def model_plots(model: ModelResult) -> Iterator[tuple[str, str, str]]:
    """Yield title, explanation and SVG of each plot that there is something for."""
    timings = [timing for timing in model.measured() if timing.stage in GRAPHS]
    if not timings:
        return
    batch = min(timing.batch for timing in timings)
    where = f"{model.name}, batch {batch}"
    timings = [timing for timing in timings if timing.batch == batch]
    title = f"How the times are spread: {where}"
    yield (
        title,
        "Every run is a dot; the bar holds half of them, the line is the median.",
        _spread(title, timings),
    )
    stages = [found for found in model.stage_medians() if found["batch"] == batch]
    if stages:
        title = f"What a picture's time is made of: {where}"
        text = "Medians of the stages; the diamond is the median of the whole, measured by itself."
        yield title, text, _stages(title, stages)
    distances = [distance for distance in model.distances() if distance.batch == batch]
    if distances:
        title = f"Distance from the machine's limit: {where}"
        text = (
            "1 is what the arithmetic allows: the multiplications of the graphs at the rate of a large "
            "matrix product in the contender's precision, timed in the same rounds."
        )
        points = {(one.contender, one.stage): one.ratio for one in distances}
        yield title, text, _distances(title, points)


def _spread(title: str, timings: Sequence[Timing]) -> str:
    names = list(dict.fromkeys(timing.contender for timing in timings))
    stages = [stage for stage in GRAPHS if any(timing.stage == stage for timing in timings)]
    figure, axes = panels(len(stages), height_in=rows_height_in(len(names)), share_rows=True)
    for stage, panel in zip(stages, axes, strict=True):
        for timing in timings:
            if timing.stage == stage:
                _dots(panel, names.index(timing.contender), timing)
        panel.set(title=stage, xlabel="ms", xlim=(0, None))
        panel.margins(x=0.05)
    name_rows(axes[0], names)
    for panel in axes[1:]:
        panel.grid(axis="y", visible=False)
        panel.tick_params(axis="y", length=0)
    return as_svg(figure, title=title)


def _dots(panel: Axes, row: int, timing: Timing) -> None:
    samples, shade = np.asarray(timing.samples_ms), color(timing.contender)
    heights = row + JITTER * np.random.default_rng(0).uniform(-1, 1, len(samples))
    low, middle, high = np.percentile(samples, [25, 50, 75])
    panel.barh(row, high - low, left=low, height=0.62, color=shade, alpha=0.28)
    panel.plot(samples, heights, ".", color=shade, markersize=6, alpha=0.75, markeredgewidth=0)
    panel.plot([middle, middle], [row - 0.34, row + 0.34], color=shade, linewidth=2.5)


def _stages(title: str, stages: Sequence[dict[str, float | None]]) -> str:
    names = [str(found["contender"]) for found in stages]
    figure, (panel,) = panels(1, height_in=rows_height_in(len(names)) + 0.2)
    for row, found in enumerate(stages):
        left = 0.0
        for stage, shade in SHADES.items():
            width = found[stage] or 0.0
            panel.barh(
                row, width, left=left, height=0.62, color=color(names[row]), alpha=shade, edgecolor="white"
            )
            left += width
        if found["end to end"] is not None:
            panel.plot(found["end to end"], row, "D", color=INK, markersize=6)
    name_rows(panel, names)
    panel.set(xlabel="ms", xlim=(0, None))
    shown = [stage for stage in SHADES if any(found[stage] for found in stages)]
    keys: list[Patch | Line2D] = [Patch(color=QUOTED, alpha=SHADES[stage], label=stage) for stage in shown]
    keys.append(Line2D([], [], marker="D", linestyle="", color=INK, label="end to end"))
    panel.legend(handles=keys, ncols=len(keys), loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.3)
    return as_svg(figure, title=title)


def _distances(title: str, points: dict[tuple[str, str], float]) -> str:
    names = list(dict.fromkeys(name for name, _ in points))
    figure, (panel,) = panels(1, height_in=rows_height_in(len(names)) + 0.2)
    for (name, stage), ratio in points.items():
        panel.plot(
            ratio,
            names.index(name),
            MARKERS[stage],
            color=color(name),
            markersize=9,
            alpha=0.85,
            markeredgecolor="white",
        )
    panel.axvline(1, color=INK, linewidth=1.5)
    name_rows(panel, names)
    panel.set(xlabel="times the bound", xlim=(0, 1.06 * max(1, *points.values())))
    keys = [
        Line2D([], [], marker=mark, linestyle="", color=QUOTED, label=stage)
        for stage, mark in MARKERS.items()
    ]
    keys.append(Line2D([], [], color=INK, label="the limit"))
    panel.legend(handles=keys, ncols=len(keys), loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.3)
    return as_svg(figure, title=title)
