"""What all plots share: size, type, colours, and SVG that can stand in a page. Needs matplotlib."""

from __future__ import annotations

import io
import re
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# One hue for a way of running, lighter for what is inside it, darker for a lower precision.
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
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],  # of nearly one width: labels fit in all
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
    """Return a contender's colour, the same in every plot."""
    return COLORS.get(contender, OTHER)


def panels(count: int, *, height_in: float, share_rows: bool = False) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels side by side.

    Args:
        share_rows: They have rows in common, labelled on the left.
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
    """Return a figure as an SVG element for a page, with a title for those who cannot see it."""
    buffer = io.StringIO()
    with mpl.rc_context(
        {"svg.hashsalt": title}
    ):  # ids are the same in every run, and another plot has others
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # nobody refers to them, and each plot has the same ones
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)  # the page says how wide
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
