"""The results as tables, for the terminal and as Markdown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks import aims
from benchmarks.paper import OUTPUT_SIDE
from benchmarks.results import ModelResult, Results, Standing


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a title."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""

    def as_text(self) -> str:
        """Return columns of even width: names to the left, numbers to the right."""
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


def all_tables(results: Results) -> Iterator[Table]:
    """Yield every table of a run."""
    machine = results.provenance["cpu"]
    yield Table(title="Where and how", columns=("what", "value"), rows=list(results.provenance.items()))
    for model in results.models:
        if model.skipped:
            yield Table(
                title=f"{model.name}: skipped",
                columns=("model", "reason"),
                rows=[(model.name, model.skipped)],
            )
            continue
        yield _standings(model)
        for table in (
            _times(model, results),
            _aims(model),
            _limit(model),
            _fresh(model),
            _paper(model, machine),
        ):
            if table.rows:
                yield table


def _standings(model: ModelResult) -> Table:
    return Table(
        title=f"{model.name}: contenders ({model.input} to {model.output})",
        note=f"Before anything is timed, pictures are compared with those of {model.reference}.",
        columns=("contender", "what", "status", "PSNR dB", "levels", "reason"),
        rows=[_standing(standing) for standing in model.standings],
    )


def _standing(standing: Standing) -> tuple[str, ...]:
    agreement = standing.agreement
    figures = ("", "") if agreement is None else (f"{agreement.psnr_db:.1f}", f"{agreement.max_levels:g}")
    reason = standing.reason.splitlines()[0][:100] if standing.reason else ""
    return (standing.name, standing.what, standing.status, *figures, reason)


def _times(model: ModelResult, results: Results) -> Table:
    rows = []
    for timing in model.timings:
        if timing.samples_ms:
            summary = timing.summary()
            times = [_ms(summary[name]) for name in ("p50_ms", "p90_ms", "p99_ms", "mean_ms")]
            rate = f"{summary['images_per_s']:.3g}" if timing.images else ""
            rows.append(
                (timing.stage, str(timing.batch), timing.contender, *times, rate, str(summary["runs"]))
            )
    settings = results.settings
    return Table(
        title=f"{model.name}: times in ms",
        note=f"{settings['rounds']} rounds of every call after {settings['warmup']} for warming up; "
        "no run is left out.",
        columns=("stage", "batch", "contender", "p50", "p90", "p99", "mean", "images/s", "runs"),
        rows=rows,
    )


def _aims(model: ModelResult) -> Table:
    found = aims.measured(model.timings)
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
    ceilings = model.ready_ceilings()
    note = ""
    if ceilings is not None:
        note = (
            f"Measured among the contenders: {ceilings.macs_per_s() / 1e9:.1f} GMAC/s (FP32 matrix product), "
            f"{ceilings.macs_per_s('bf16') / 1e9:.1f} GMAC/s (BF16), "
            f"{ceilings.bytes_per_s() / 1e9:.1f} GB/s (copy)."
        )
    return Table(
        title=f"{model.name}: against the machine's limit",
        note=note,
        columns=("stage", "batch", "contender", "GMAC", "bound ms", "p50 ms", "times the bound"),
        rows=[
            (
                distance.stage,
                str(distance.batch),
                distance.contender,
                f"{distance.gmacs:.3g}",
                _ms(distance.bound_ms),
                _ms(distance.p50_ms),
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


def _paper(model: ModelResult, machine: str) -> Table:
    rows = model.paper_rows(machine)
    only_quoted = all("(quoted)" in row.method for row in rows)
    return Table(
        title=f"{model.name}: against the paper's runtime column (Table 1)",
        note="Quoted rows are from another card; scaled: by 11.76 TFLOP/s over this machine's measured FP32 "
        "ceiling." + (f" Ours stand here only at {OUTPUT_SIDE} pixels." if only_quoted else ""),
        columns=("method", "machine", "s an image", "scaled to here"),
        rows=[(row.method, row.machine, f"{row.seconds:.3f}", f"{row.scaled_seconds:.3f}") for row in rows],
    )


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _is_number(cell: str) -> bool:
    return not cell or cell.replace(".", "", 1).replace("e+", "", 1).isdigit()
