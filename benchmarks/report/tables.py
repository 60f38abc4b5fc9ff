"""The tables of a run, for the terminal, as Markdown and as HTML."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.measure.timing import STAGES
from benchmarks.report.paper import OUTPUT_SIDE, P40_FLOPS, measured_aims
from benchmarks.report.result import ContenderResult, ModelResult, Results
from benchmarks.report.statistics import Axis, Curve


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a title."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""

    def as_text(self) -> str:
        """Return columns of even width, with numbers aligned to the right."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.columns))]
        numeric = [all(_is_number(row[column]) for row in self.rows) for column in range(len(self.columns))]
        shown = [
            "  ".join(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(line, widths, numeric, strict=True)
            ).rstrip()
            for line in lines
        ]
        return "\n".join(
            [f"\n{self.title}", *([self.note] if self.note else []), *(f"  {line}" for line in shown)]
        )

    def as_markdown(self) -> str:
        """Return a Markdown table under a heading."""
        marks = ["---:" if all(_is_number(row[at]) for row in self.rows) else "---"
                 for at in range(len(self.columns))]  # fmt: skip
        lines = ["| " + " | ".join(line) + " |" for line in (self.columns, tuple(marks), *self.rows)]
        return "\n".join([f"\n### {self.title}\n", *([f"{self.note}\n"] if self.note else []), *lines])

    def as_html(self) -> str:
        """Return an HTML table under a heading."""
        numeric = [all(_is_number(row[at]) for row in self.rows) for at in range(len(self.columns))]
        marks = [' class="number"' if right else "" for right in numeric]
        head = "".join(
            f"<th{mark}>{escape(cell)}</th>" for mark, cell in zip(marks, self.columns, strict=True)
        )
        rows = [
            "".join(f"<td{mark}>{escape(cell)}</td>" for mark, cell in zip(marks, row, strict=True))
            for row in self.rows
        ]
        body = "".join(f"<tr>{row}</tr>\n" for row in rows)
        table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>"
        note = f"<p>{escape(self.note)}</p>\n" if self.note else ""
        return f'<h3>{escape(self.title)}</h3>\n{note}<div class="wide">{table}</div>'


def ms(value: float) -> str:
    """Return milliseconds with three significant digits."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _is_number(cell: str) -> bool:
    return not cell or cell.replace(".", "", 1).replace("e+", "", 1).isdigit()


def all_tables(results: Results) -> Iterator[Table]:
    """Yield every table of a run."""
    yield provenance_table(results)
    for model in results.models:
        yield from model_tables(model, results)
    yield from scaling_tables(results)
    yield paper_table(results)


def provenance_table(results: Results) -> Table:
    """Return machine, versions, commit and command."""
    return Table(title="Where and how", columns=("what", "value"), rows=list(results.provenance.items()))


def model_tables(model: ModelResult, results: Results) -> Iterator[Table]:
    """Yield those tables of one model that have rows."""
    if model.skipped:
        reason = [(model.name, model.skipped)]
        yield Table(title=f"{model.name}: skipped", columns=("model", "reason"), rows=reason)
        return
    for table in (
        _standings(model),
        _stages(model),
        _times(model, results),
        _aims(model),
        _limit(model),
        _fresh(model),
        _alone(model),
    ):
        if table.rows:
            yield table


def _standings(model: ModelResult) -> Table:
    compared = f"Before anything is timed, pictures are compared with those of {model.reference}."
    return Table(
        title=f"{model.name}: contenders ({model.input} to {model.output})",
        note=" ".join([compared, model.not_tried]).strip(),
        columns=("contender", "what", "status", "PSNR dB", "levels", "reason"),
        rows=[_standing(standing) for standing in model.standings],
    )


def _standing(standing: ContenderResult) -> tuple[str, ...]:
    agreement = standing.agreement
    figures = ("", "") if agreement is None else (f"{agreement.psnr_db:.1f}", f"{agreement.max_levels:g}")
    reason = standing.reason.splitlines()[0][:160] if standing.reason else ""
    return (standing.name, standing.what, standing.status, *figures, reason)


def _stages(model: ModelResult) -> Table:
    devices = {standing.name: standing.device for standing in model.standings}
    rows = []
    for found in model.stage_medians():
        on_cpu = devices[found["contender"]] == "cpu"
        cells = [_stage(found[stage], stage, on_cpu=on_cpu) for stage in STAGES]
        rows.append((found["contender"], str(found["batch"]), *cells))
    return Table(
        title=f"{model.name}: medians by stage, in ms",
        note="On the CPU nothing is uploaded or downloaded. Style-mix: from a seed to mixed codes.",
        columns=("contender", "batch", *STAGES),
        rows=rows,
    )


def _stage(median_ms: float | None, stage: str, *, on_cpu: bool) -> str:
    if median_ms is not None:
        return ms(median_ms)
    if stage in ("upload", "download"):
        return "none" if on_cpu else "within"  # for psp_rt on a GPU: part of encode and generate
    return ""


def _times(model: ModelResult, results: Results) -> Table:
    rows = []
    for timing in model.measured():
        summary = timing.summary()
        times = [ms(summary[name]) for name in ("p50_ms", "p90_ms", "p99_ms", "mean_ms")]
        rate = f"{summary['images_per_s']:.3g}" if timing.images else ""
        rows.append((timing.stage, str(timing.batch), timing.contender, *times, rate, str(summary["runs"])))
    settings = results.settings
    return Table(
        title=f"{model.name}: times in ms",
        note=f"{settings['rounds']} rounds of every call after {settings['warmup']} for warming up; "
        "no run is left out.",
        columns=("stage", "batch", "contender", "p50", "p90", "p99", "mean", "images/s", "runs"),
        rows=rows,
    )


def _aims(model: ModelResult) -> Table:
    found = measured_aims(model.timings)
    return Table(
        title=f"{model.name}: ratios of medians",
        note="With the interval that holds the ratio in 95 of 100 repetitions.",
        columns=("ratio", "value", "from", "to"),
        rows=[
            (name, f"{ratio.value:.3f}", f"{ratio.low:.3f}", f"{ratio.high:.3f}")
            for name, ratio in found.items()
        ],
    )


def _limit(model: ModelResult) -> Table:
    names = {"cpu": "CPU", "cuda": "GPU"}
    measured = [f"{names[device]} {ceilings}" for device, ceilings in model.ready_ceilings().items()]
    return Table(
        title=f"{model.name}: against the machine's limit",
        note=f"Measured among the contenders: {'; '.join(measured)}.",
        columns=("stage", "batch", "contender", "GMAC", "bound ms", "p50 ms", "times the bound"),
        rows=[
            (
                distance.stage,
                str(distance.batch),
                distance.contender,
                f"{distance.gmacs:.3g}",
                ms(distance.bound_ms),
                ms(distance.p50_ms),
                f"{distance.ratio:.2f}",
            )
            for distance in model.distances()
        ],
    )


def _fresh(model: ModelResult) -> Table:
    return Table(
        title=f"{model.name}: cold start and memory of psp_rt, in processes of their own",
        note=f"The engine has {model.engine_bytes / 2**20:.1f} MiB. Seconds; files are in the page cache.",
        columns=(
            "model",
            "import",
            "open",
            "first run",
            "open + first",
            "second run",
            "peak MiB",
            "processes",
        ),
        rows=[
            (
                run.what,
                *(
                    f"{seconds:.3f}"
                    for seconds in (
                        run.import_s,
                        run.open_s,
                        run.first_run_s,
                        run.first_picture_s,
                        run.second_run_s,
                    )
                ),
                f"{run.peak_mib:.0f}",
                str(run.processes),
            )
            for run in model.fresh
        ],
    )


def _alone(model: ModelResult) -> Table:
    on_gpu = any(run.device_mib is not None for run in model.alone)
    rows = []
    for run in model.alone:
        opened = "drawn" if run.open_s is None else f"{run.open_s:.3f}"
        gpu = ["none" if run.device_mib is None else f"{run.device_mib:.0f}"] if on_gpu else []
        times = (opened, f"{run.first_run_s:.3f}", f"{run.second_run_s:.3f}")
        rows.append((run.contender, str(run.batch), str(run.clones), *times, f"{run.peak_mib:.0f}", *gpu))
    return Table(
        title=f"{model.name}: each contender alone in a process",
        note="Seconds to open, for the first and the second call; the most host memory"
        f"{', and memory of the GPU' if on_gpu else ''}.",
        columns=(
            "contender",
            "batch",
            "clones",
            "open",
            "first run",
            "second run",
            "peak MiB",
            *(["GPU MiB"] if on_gpu else []),
        ),
        rows=rows,
    )


def paper_table(results: Results) -> Table:
    """Return the paper's runtime column next to ours."""
    rows = results.paper_rows()
    only_quoted = all(row.is_quoted for row in rows)
    return Table(
        title="Against the paper's runtime column (Table 1)",
        note="Quoted rows are from another card. The last column scales ours by arithmetic: the peak "
        f"measured here in the contender's precision over the P40's {P40_FLOPS / 1e12:.2f} TFLOP/s."
        + (f" Ours stand here only at {OUTPUT_SIDE} pixels, batch 1." if only_quoted else ""),
        columns=("encoder", "by", "machine", "s an image", "s at a P40's peak"),
        rows=[
            (
                row.method,
                "the paper (quoted)" if row.is_quoted else row.contender,
                row.machine,
                f"{row.seconds:.3g}",
                f"{row.p40_seconds:.3g}",
            )
            for row in rows
        ],
    )


AXES: dict[Axis, str] = {"batch": "batch", "clones": "clones at work at once", "size": "output size"}
PER: dict[Axis, str] = {"batch": "picture", "clones": "clone", "size": "megapixel"}


def scaling_tables(results: Results) -> Iterator[Table]:
    """Yield a table for each axis and model that has curves, and what was left out."""
    curves = results.curves()
    for axis in AXES:
        for model in dict.fromkeys(curve.model for curve in curves if curve.axis == axis):
            yield _scaling_table(
                axis, model, [curve for curve in curves if (curve.axis, curve.model) == (axis, model)]
            )
    left_out = [tuple(line.split(": ", 1)) for model in results.models for line in model.left_out]
    if left_out:
        yield Table(title="Scaling: left out", columns=("point", "reason"), rows=left_out)


def _scaling_table(axis: Axis, model: str, curves: list[Curve]) -> Table:
    several = axis == "clones"
    return Table(
        title=f"{model}: against {AXES[axis]}",
        note="Medians, and the line of least squares with the root mean square of its residuals. "
        + _explained(axis),
        columns=(
            "what",
            "contender",
            "unit",
            "measured",
            "fixed",
            f"per {PER[axis]}",
            "residual",
            *(["images/s"] if several else []),
        ),
        rows=[_scaling_row(curve, several=several) for curve in curves],
    )


def _explained(axis: Axis) -> str:
    if axis == "clones":
        return "Times are for one picture from each clone, all at once; images/s by the number of clones."
    return "Memory is that of a process with this contender alone."


def _scaling_row(curve: Curve, *, several: bool) -> tuple[str, ...]:
    measured = ", ".join(f"{point(curve.axis, x)}: {ms(value)}" for x, value in curve.points)
    line = ("", "", "") if curve.line is None else tuple(
        ms(value) for value in (curve.line.fixed, curve.line.slope, curve.line.residual)
    )  # fmt: skip
    rates = ""
    if curve.unit == "ms":
        rates = ", ".join(f"{x:g}: {1000 * x / value:.3g}" for x, value in curve.points)
    return (curve.what, curve.contender, curve.unit, measured, *line, *([rates] if several else []))


def point(axis: Axis, x: float) -> str:
    """Return a point of an axis as text."""
    return f"{(x * 1e6) ** 0.5:.0f}" if axis == "size" else f"{x:g}"
