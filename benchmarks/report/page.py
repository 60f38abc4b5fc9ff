"""A run as one page: plots, tables and provenance in one HTML file, without scripts and without a network."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from benchmarks.report.paper import OTHERS, measured_aims
from benchmarks.report.result import ModelResult, Results
from benchmarks.report.tables import Table
from psp_rt import PspError

INSTALL = "pip install '.[benchmarks]'"
CSS = """
body { background: #fff; color: #222; font: 15px/1.5 'DejaVu Sans', Verdana, sans-serif; margin: 0 auto;
  max-width: 1120px; padding: 24px; }
h1 { font-size: 26px; margin: 0 0 8px; }
h2 { font-size: 21px; border-bottom: 2px solid #222; margin: 44px 0 12px; }
h3 { font-size: 16px; margin: 28px 0 4px; } p { margin: 4px 0 10px; max-width: 90ch; }
svg { width: 100%; height: auto; display: block; margin: 6px 0 18px; }
table { border-collapse: collapse; font-size: 13px; } .wide { overflow-x: auto; }
th, td { padding: 3px 10px 3px 0; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #888; } .number { text-align: right; font-variant-numeric: tabular-nums; }
.warning { background: #fff3cd; border-left: 4px solid #d9a400; padding: 8px 12px; }
details { margin: 8px 0; } summary { cursor: pointer; font-weight: bold; }
"""
TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
{body}
</body>
</html>
"""


def check_matplotlib() -> None:
    """Check that a page can be drawn, before anything is measured for it.

    Raises:
        PspError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise PspError(f"--html needs matplotlib, which is not installed; install it with: {INSTALL}")


def page(results: Results, tables: Sequence[Table]) -> str:
    """Return the page's HTML.

    Args:
        tables: All tables of the run.
    """
    title = "psp_rt: latency on " + results.provenance["cpu"]
    parts = [f"<h1>{escape(title)}</h1>", *_summary(results)]
    for heading, plots in _plots(results):
        drawn = [f"<h3>{escape(name)}</h3>\n<p>{escape(text)}</p>\n{svg}" for name, text, svg in plots]
        if drawn:
            parts += [f"<h2>{escape(heading)}</h2>", *drawn]
    parts.append("<h2>All figures</h2>")
    parts += [_folded(table) if len(table.rows) > 24 else table.as_html() for table in tables]
    return TEMPLATE.format(title=escape(title), css=CSS, body="\n".join(parts))


def _plots(results: Results) -> Iterator[tuple[str, Iterable[tuple[str, str, str]]]]:
    """Yield the plots of each section; matplotlib is loaded here, and only for a page."""
    import matplotlib as mpl

    from benchmarks.report.plots import STYLE, model_plots, paper_plot, scaling_plots

    with mpl.rc_context(STYLE):
        for model in results.models:
            yield model.name, list(model_plots(model))
        yield "Scaling", list(scaling_plots(results))
        yield "The paper", list(paper_plot(results))


def _summary(results: Results) -> Iterator[str]:
    where = results.provenance
    shown = (
        f"{where['date']}, commit {where['commit']}, {where['threads']} threads, load {where['load']} before"
    )
    yield f"<p>{escape(shown)}<br><code>{escape(where['command'])}</code></p>"
    if not results.complete:
        yield '<p class="warning">The run was interrupted: what was measured until then follows.</p>'
    lines = [line for model in results.models for line in _headlines(model)]
    if lines:
        yield "<ul>\n" + "\n".join(f"<li>{escape(line)}</li>" for line in lines) + "\n</ul>"


def _headlines(model: ModelResult) -> Iterator[str]:
    """Yield the main results as sentences."""
    if model.skipped:
        yield f"{model.name}: skipped, it {model.skipped}."
    ratios = measured_aims(model.timings)
    for timing in model.measured():
        if timing.stage == "end to end" and timing.batch == 1 and timing.contender in OTHERS:
            line = (
                f"{model.name}: {timing.contender} takes {timing.p50_ms:.4g} ms from file to picture (median)"
            )
            for other in OTHERS[timing.contender]:
                ratio = ratios.get(f"{other} / {timing.contender}: end to end, batch 1")
                if ratio is not None:
                    times = f"{ratio.value:.2f} times as long ({ratio.low:.2f} to {ratio.high:.2f})"
                    line += f"; {other} takes {times}"
            yield line + "."


def _folded(table: Table) -> str:
    """Return a long table that opens on a click."""
    summary = f"<summary>{escape(table.title)}: {len(table.rows)} rows</summary>"
    return f"<details>{summary}\n{table.as_html()}\n</details>"
