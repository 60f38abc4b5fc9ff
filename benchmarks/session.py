"""Measure one model: which contenders there are, whether they agree, then their times."""

import gc
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contenders import ENTRIES, Contender, Entry
from benchmarks.contenders.unavailable import Unavailable
from benchmarks.measure import agreement, fresh, scaling, timing
from benchmarks.measure.limits import Ceilings, Device
from benchmarks.measure.memory import Footprint
from benchmarks.measure.stages import all_calls
from benchmarks.measure.timing import Call
from benchmarks.measure.work import graph_work
from benchmarks.measure.workload import ROOT, Workload
from benchmarks.report.result import ModelResult, Standing
from psp_rt import EngineFile

DEMONSTRATION = ROOT / "models" / "sketch.engine"
DRAWING = ROOT / "models" / "drawing.png"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run measures.

    Args:
        batches: Of all stages of all contenders.
        larger_batches: Of psp_rt from end to end alone, for the scaling.
        clones: How many work at once, for the scaling.
        contenders: By their names.
        not_tried: Why some are left out that nobody named.
    """

    batches: tuple[int, ...]
    larger_batches: tuple[int, ...]
    clones: tuple[int, ...]
    rounds: int
    warmup: int
    threads: int
    processes: int
    matrix_side: int
    copied_bytes: int
    contenders: tuple[str, ...]
    not_tried: str = ""


Progress = Callable[[str, float | None], None]


def measure(result: ModelResult, workload: Workload, settings: Settings, progress: Progress) -> None:
    """Measure a model, noting what is known as soon as it is."""
    describe(result, workload, settings)
    for what, engine, picture in _fresh_runs(workload):
        progress(f"fresh processes: {what}", None)
        result.fresh.append(
            fresh.measure(what, engine, picture, threads=settings.threads, processes=settings.processes)
        )
    entries = [entry for entry in ENTRIES if entry.name in settings.contenders]
    result.not_tried = settings.not_tried
    contenders = admit(result, entries, workload, progress)
    crews: dict[tuple[str, int], scaling.Crew] = {}
    try:
        calls = [*ceiling_calls(result, settings), *all_calls(contenders, workload, settings.batches)]
        batches, clones = that_fit(result, workload, settings)
        calls += scaling.batch_calls(contenders, workload, batches)
        crews = scaling.crews(contenders, workload, clones)
        calls += scaling.clone_calls(crews)
        result.timings += [times for call in calls for times in (call.timing, call.parts) if times]
        timing.measure(calls, rounds=settings.rounds, warmup=settings.warmup, progress=progress)
    finally:
        for crew in crews.values():
            crew.close()
        for contender in contenders.values():
            contender.close()
        workload.close()
        gc.collect()
    measure_alone(
        result,
        [entry for entry in entries if entry.name in contenders],
        workload,
        batches=settings.batches,
        larger_batches=batches,
        clones=clones,
        progress=progress,
    )


def ceiling_calls(result: ModelResult, settings: Settings) -> list[Call]:
    """Return the calls that show what the devices of the contenders can do."""
    devices: list[Device] = ["cpu"]
    devices += ["cuda"] * any(row.device == "cuda" and row.status == "timed" for row in result.standings)
    for device in devices:
        larger = 4 if device == "cuda" else 1  # a GPU is done with the CPU's sizes before it is busy
        result.ceilings[device] = Ceilings(
            threads=settings.threads,
            side=settings.matrix_side * larger,
            copied_bytes=settings.copied_bytes * larger,
            device=device,
        )
    return [call for ceilings in result.ceilings.values() for call in ceilings.calls()]


def that_fit(
    result: ModelResult, workload: Workload, settings: Settings
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the batch sizes and numbers of clones that the memory allows; the others are noted."""
    footprint = Footprint.of_engine(workload.engine)
    kept = []
    for what, counts in (("batch", settings.larger_batches), ("clones", settings.clones)):
        shortages = {count: footprint.shortage(batch=count, opened=True) for count in counts}
        result.left_out += [f"{what} {count}: {why}" for count, why in shortages.items() if why]
        kept.append(tuple(count for count, why in shortages.items() if not why))
    return kept[0], kept[1]


def measure_alone(
    result: ModelResult,
    entries: Sequence[Entry],
    workload: Workload,
    *,
    batches: Sequence[int],
    larger_batches: Sequence[int],
    clones: Sequence[int],
    progress: Progress,
) -> None:
    """Run each contender in a process of its own: cold start, and memory against batch and clones."""
    for entry in entries:
        if not fresh.can_run_alone(entry):
            continue
        points = [(batch, 1) for batch in batches]
        if entry.translator:
            points += [(batch, 1) for batch in larger_batches] + [(1, count) for count in clones]
        for batch, count in dict.fromkeys(points):
            progress(f"{entry.name} in a process of its own: batch {batch}, clones {count}", None)
            try:
                run = fresh.measure_contender(entry, workload, batch=batch, clones=count)
            except subprocess.CalledProcessError as error:
                why = f"its own process ended with status {error.returncode}; too little memory?"
                result.left_out.append(f"{entry.name}, batch {batch}, clones {count}: {why}")
            else:
                result.alone.append(run)


def describe(result: ModelResult, workload: Workload, settings: Settings) -> None:
    """Note what is measured: sizes and work."""
    output = workload.manifest.output
    result.input = f"{workload.input.width} x {workload.input.height} {workload.input.kind}"
    result.output = f"{output.width} x {output.height}"
    result.output_pixels = output.width * output.height
    result.engine_bytes = workload.engine.stat().st_size
    with EngineFile.open(workload.engine) as engine:
        for graph in ("encoder", "generator"):
            for batch in (*settings.batches, *settings.larger_batches):
                result.works[graph, batch] = graph_work(engine, graph, batch=batch)


def admit(
    result: ModelResult, entries: Sequence[Entry], workload: Workload, progress: Progress
) -> dict[str, Contender]:
    """Open the contenders and return those whose pictures are the reference's.

    The reference is PyTorch, or the bare sessions where only an engine was given.
    """
    result.reference = "pytorch" if workload.model is not None else "sessions-cpu"
    progress(f"pictures of {result.reference}, to compare with", None)
    (entry,) = (entry for entry in ENTRIES if entry.name == result.reference)
    reference = entry.open(workload)
    expected = agreement.expect(reference, workload)
    reference.close()
    admitted = {}
    for entry in entries:
        progress(f"comparing {entry.name}", None)
        standing, contender = try_contender(entry, workload, expected)
        result.standings.append(standing)
        if contender is not None:
            admitted[entry.name] = contender
    return admitted


def try_contender(
    entry: Entry, workload: Workload, expected: agreement.Expected
) -> tuple[Standing, Contender | None]:
    """Open a contender and compare its pictures; it is returned only if it may be timed."""
    standing = Standing(
        name=entry.name, what=entry.what, device=entry.device, precision=entry.precision, status="timed"
    )
    try:
        contender = entry.open(workload)
    except Unavailable as error:
        standing.status, standing.reason = "unavailable", str(error)
        return standing, None
    try:
        standing.agreement = agreement.measure(contender, expected)
    except Exception as error:  # each library has errors of its own; the others can still be measured
        contender.close()
        standing.status, standing.reason = "failed", f"{type(error).__name__}: {error}"
        return standing, None
    standing.reason = standing.agreement.fault(entry.precision)
    if standing.reason:
        standing.status = "wrong"
        contender.close()
        return standing, None
    return standing, contender


def _fresh_runs(workload: Workload) -> list[tuple[str, Path, Path]]:
    runs = [(workload.name, workload.engine, workload.pictures[0])]
    if DEMONSTRATION.exists() and DRAWING.exists():
        runs.append(("the demonstration", DEMONSTRATION, DRAWING))
    return runs
