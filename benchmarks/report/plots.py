"""The plots of a page, as SVG: times, stages and limits of a model, scaling, and the paper's column.

Needs matplotlib.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from benchmarks.measure.limits import STAGE_GRAPHS
from benchmarks.measure.timing import Timing
from benchmarks.report.paper import Row
from benchmarks.report.result import ModelResult, Results
from benchmarks.report.statistics import DEVICE_MEMORY, MEMORY, Axis, Curve
from benchmarks.report.tables import AXES, point

# One hue for each way of running, lighter for its bare sessions, darker for a lower precision.
COLORS = {
    "psp_rt-cpu": "#15855f",
    "sessions-cpu": "#86c9b1",
    "psp_rt-openvino": "#1f78c8",
    "sessions-openvino": "#97c5ec",
    "psp_rt-openvino-bf16": "#0b2f6b",
    "openvino": "#7d9cba",
    "openvino-bf16": "#7a5fb5",
    "pytorch-original": "#d9600a",
    "pytorch-original-bf16": "#f0a95c",
    "pytorch": "#c02848",
    "pytorch-compiled": "#7d1730",
    "psp_rt-tensorrt-fp16": "#4c7a00",
    "psp_rt-tensorrt": "#93b944",
    "psp_rt-cuda": "#00858f",
    "pytorch-original-cuda": "#d9600a",
    "pytorch-cuda": "#c02848",
    "pytorch-cuda-fp16": "#e07f95",
    "pytorch-compiled-cuda-fp16": "#7d1730",
}
OTHER, QUOTED, INK, GRID = "#8a8a8a", "#444444", "#222222", "#dddddd"
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: it can be read, found and copied
    "font.family": "sans-serif",
    "font.sans-serif": [
        "DejaVu Sans",
        "Verdana",
        "sans-serif",
    ],  # of similar width, so that labels fit in all
    "font.size": 11.0,
    "axes.titlesize": 12.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}
WIDTH_IN, ROW_IN = 11.5, 0.36


def color(contender: str) -> str:
    """Return a contender's color, the same in every plot."""
    return COLORS.get(contender, OTHER)


def panels(count: int, *, height_in: float, share_rows: bool = False) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels side by side.

    Args:
        share_rows: The panels have the same rows, labeled on the left.
    """
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    found = figure.subplots(1, count, squeeze=False, sharey=share_rows)
    return figure, list(found[0])


def name_rows(axes: Axes, names: list[str]) -> None:
    """Label the rows of a plot, the first one on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def rows_height_in(rows: int) -> float:
    """Return the height of a plot with so many rows, title, axis and legend included."""
    return 1.5 + ROW_IN * rows


def as_svg(figure: Figure, *, title: str) -> str:
    """Return a figure as an SVG element for a page, with a title for screen readers."""
    buffer = io.StringIO()
    with mpl.rc_context(
        {"svg.hashsalt": title}
    ):  # ids are the same in every run, and another plot has others
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # nothing refers to them, and all plots have the same ones
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)  # the page sets the width
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)


MARKERS = {"encode": "o", "generate": "s", "end to end": "D"}
SHADES = {"read": 0.15, "upload": 0.3, "encode": 0.5, "generate": 0.95, "download": 0.3}
JITTER = 0.22  # of a row's height, so that equal times do not hide each other


def model_plots(model: ModelResult) -> Iterator[tuple[str, str, str]]:
    """Yield title, explanation and SVG of each plot of a model for which there is data."""
    timings = [timing for timing in model.measured() if timing.stage in STAGE_GRAPHS]
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
    stages = [stage for stage in STAGE_GRAPHS if any(timing.stage == stage for timing in timings)]
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


LABELS: dict[Axis, str] = {
    "batch": "pictures of a batch",
    "clones": "clones at work",
    "size": "side of the output, spaced by its pixels",
}
TIMES: dict[Axis, str] = {
    "batch": "ms for the batch",
    "clones": "ms for a picture of each clone",
    "size": "ms for a picture",
}


def scaling_plots(results: Results) -> Iterator[tuple[str, str, str]]:
    """Yield title, explanation and SVG for each axis and model with curves."""
    curves = results.curves()
    for axis in AXES:
        for model in dict.fromkeys(curve.model for curve in curves if curve.axis == axis):
            mine = [curve for curve in curves if (curve.axis, curve.model) == (axis, model)]
            title = f"Scaling: {model} against {AXES[axis]}"
            yield (
                title,
                "From end to end. Lines are least squares; through two points there is none.",
                _scaling(title, axis, mine),
            )


def _scaling(title: str, axis: Axis, curves: Sequence[Curve]) -> str:
    times = [curve for curve in curves if curve.what == "end to end"]
    shown = [
        (times, TIMES[axis], "time"),
        ([curve for curve in curves if curve.what == MEMORY], "MiB at most", "host memory, process alone"),
        ([curve for curve in curves if curve.what == DEVICE_MEMORY], "MiB", "GPU memory, process alone"),
    ]
    if axis != "size":
        shown.insert(1, (times, "pictures a second", "throughput"))
    shown = [panel for panel in shown if panel[0]]
    names = list(dict.fromkeys(curve.contender for found, _, _ in shown for curve in found))
    figure, axes = panels(len(shown), height_in=3.9 + 0.28 * -(-len(names) // 4))
    for panel, (found, label, heading) in zip(axes, shown, strict=True):
        for curve in found:
            _line(panel, curve, per_second=heading == "throughput")
        ticks = sorted({x for curve in found for x, _ in curve.points})
        panel.set_xticks(ticks, [point(axis, x) for x in ticks])
        panel.set(
            title=heading, xlabel=LABELS[axis], ylabel=label, ylim=(0, None), xlim=(0, 1.08 * ticks[-1])
        )
    keys = [Line2D([], [], color=color(name), marker="o", label=name) for name in names]
    figure.legend(handles=keys, ncols=4, loc="outside lower left")
    return as_svg(figure, title=title)


def _line(panel: Axes, curve: Curve, *, per_second: bool) -> None:
    xs, values = np.asarray(curve.points).T
    shade = color(curve.contender)
    if per_second:
        panel.plot(xs, 1000 * xs / values, "-o", color=shade, linewidth=1.5)
        return
    panel.plot(xs, values, "o", color=shade)
    if curve.line is not None:
        ends = np.asarray([0, xs[-1]])
        panel.plot(ends, curve.line.fixed + curve.line.slope * ends, color=shade, linewidth=1.5, alpha=0.8)


def paper_plot(results: Results) -> Iterator[tuple[str, str, str]]:
    """Yield title, explanation and SVG of the paper's column if there are figures of ours to compare."""
    rows = results.paper_rows()
    if all(row.is_quoted for row in rows):
        return
    title = "The paper's runtime column, and ours"
    text = (
        "Bars: seconds an image on the paper's Tesla P40, quoted; ours scaled to it by arithmetic peaks. "
        "Circles: seconds an image as measured here. Logarithmic."
    )
    yield title, text, _paper(title, rows)


def _paper(title: str, rows: Sequence[Row]) -> str:
    names = [f"{row.method} - {'paper' if row.is_quoted else row.contender}" for row in rows]
    figure, (panel,) = panels(1, height_in=rows_height_in(len(names)) + 0.2)
    lowest = 0.5 * min(min(row.seconds, row.p40_seconds) for row in rows)
    for at, row in enumerate(rows):
        shade = QUOTED if row.is_quoted else color(row.contender)
        panel.barh(at, row.p40_seconds - lowest, left=lowest, height=0.62, color=shade)
        panel.annotate(
            f"{row.p40_seconds:.3g}",
            (row.p40_seconds, at),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
        )
        if not row.is_quoted:
            panel.plot(
                row.seconds,
                at,
                "o",
                markerfacecolor="white",
                markeredgecolor=shade,
                markeredgewidth=2,
                markersize=8,
            )
    name_rows(panel, names)
    panel.set(xscale="log", xlabel="seconds an image", xlim=(lowest, 3 * max(row.seconds for row in rows)))
    keys = [
        Patch(color=QUOTED, label="the paper, on its card (quoted)"),
        Patch(color=color("psp_rt-openvino"), label="ours, at that card's peak"),
        Line2D(
            [], [], marker="o", linestyle="", markerfacecolor="white", markeredgecolor=INK, label="ours, here"
        ),
    ]
    panel.legend(handles=keys, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.3)
    return as_svg(figure, title=title)
