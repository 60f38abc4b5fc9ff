"""The plots over models: scaling, and the paper's column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from benchmarks.report.curves import DEVICE_MEMORY, MEMORY, Axis, Curve
from benchmarks.report.paper import Row
from benchmarks.report.plots import INK, QUOTED, as_svg, color, name_rows, panels, rows_height_in
from benchmarks.report.result import Results
from benchmarks.report.scaling_tables import AXES, point

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
    """Yield title, explanation and SVG of the paper's column, if there is something of ours beside it."""
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
