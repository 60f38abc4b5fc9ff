"""The tables of a run."""

from collections.abc import Iterator

from benchmarks.measure.stages import STAGES
from benchmarks.report import aims, scaling_tables
from benchmarks.report.paper import OUTPUT_SIDE, P40_FLOPS
from benchmarks.report.result import ModelResult, Results, Standing
from benchmarks.report.tables import Table, ms


def all_tables(results: Results) -> Iterator[Table]:
    """Yield every table of a run."""
    yield provenance_table(results)
    for model in results.models:
        yield from model_tables(model, results)
    yield from scaling_tables.all_tables(results)
    yield paper_table(results)


def provenance_table(results: Results) -> Table:
    """Return machine, versions, commit and command."""
    return Table(title="Where and how", columns=("what", "value"), rows=list(results.provenance.items()))


def model_tables(model: ModelResult, results: Results) -> Iterator[Table]:
    """Yield the tables of one model that have rows."""
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


def _standing(standing: Standing) -> tuple[str, ...]:
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
        return "none" if on_cpu else "within"  # psp_rt on a GPU: inside encode and generate
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
    """Return the paper's runtime column, and ours beside it."""
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
