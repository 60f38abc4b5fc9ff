"""Measure one model: open the contenders, check that they agree, then time them."""

import gc
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ROOT
from benchmarks.contenders.all import ENTRIES
from benchmarks.contenders.contender import Contender, Entry, Unavailable
from benchmarks.measure import fresh, stages, timing
from benchmarks.measure.limits import Ceilings, Device, Footprint, graph_work
from benchmarks.measure.timing import Call
from benchmarks.report.result import ContenderResult, ModelResult
from benchmarks.workloads.workload import Workload
from psp_rt import EngineFile

DEMONSTRATION = ROOT / "models" / "sketch.engine"
DRAWING = ROOT / "models" / "drawing.png"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run measures.

    Args:
        batches: Batch sizes of all stages of all contenders.
        larger_batches: Batch sizes of psp_rt from end to end only, for the scaling.
        clones: Numbers of clones at work at once, for the scaling.
        contenders: Names.
        not_tried: Why contenders that were not named are left out.
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
    """Measure a model, adding to its result as measurements are made."""
    describe(result, workload, settings)
    for what, engine, picture in _fresh_runs(workload):
        progress(f"fresh processes: {what}", None)
        result.fresh.append(
            fresh.measure(what, engine, picture, threads=settings.threads, processes=settings.processes)
        )
    entries = [entry for entry in ENTRIES if entry.name in settings.contenders]
    result.not_tried = settings.not_tried
    contenders = admit(result, entries, workload, progress)
    pools: dict[tuple[str, int], stages.ClonePool] = {}
    try:
        calls = [*ceiling_calls(result, settings), *stages.all_calls(contenders, workload, settings.batches)]
        batches, clones = fitting(result, workload, settings)
        calls += stages.batch_calls(contenders, workload, batches)
        pools = stages.clone_pools(contenders, workload, clones)
        calls += stages.clone_calls(pools)
        result.timings += [times for call in calls for times in (call.timing, call.parts) if times]
        timing.measure(calls, rounds=settings.rounds, warmup=settings.warmup, progress=progress)
    finally:
        for pool in pools.values():
            pool.close()
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
        larger = 4 if device == "cuda" else 1  # the CPU's sizes are too small to keep a GPU busy
        result.ceilings[device] = Ceilings(
            threads=settings.threads,
            side=settings.matrix_side * larger,
            copied_bytes=settings.copied_bytes * larger,
            device=device,
        )
    return [call for ceilings in result.ceilings.values() for call in ceilings.calls()]


def fitting(
    result: ModelResult, workload: Workload, settings: Settings
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the batch sizes and numbers of clones that fit into memory, and note the others."""
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
    """Run each contender in its own process: cold start, and memory against batch and clones."""
    for entry in entries:
        if not fresh.can_run_alone(entry):
            continue
        points = [(batch, 1) for batch in batches]
        if entry.translator:
            points += [(batch, 1) for batch in larger_batches] + [(1, count) for count in clones]
        for batch, count in dict.fromkeys(points):
            progress(f"{entry.name} in its own process: batch {batch}, clones {count}", None)
            try:
                run = fresh.measure_contender(entry, workload, batch=batch, clones=count)
            except subprocess.CalledProcessError as error:
                why = f"its own process ended with status {error.returncode}; too little memory?"
                result.left_out.append(f"{entry.name}, batch {batch}, clones {count}: {why}")
            else:
                result.alone.append(run)


def describe(result: ModelResult, workload: Workload, settings: Settings) -> None:
    """Record the model's sizes and work."""
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
    """Open the contenders and return those whose pictures agree with the reference.

    The reference is PyTorch, or the bare sessions if only an engine was given.
    """
    result.reference = "pytorch" if workload.model is not None else "sessions-cpu"
    progress(f"pictures of {result.reference}, to compare with", None)
    (entry,) = (entry for entry in ENTRIES if entry.name == result.reference)
    reference = entry.open(workload)
    expected = stages.expected_results(reference, workload)
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
    entry: Entry, workload: Workload, expected: stages.Expected
) -> tuple[ContenderResult, Contender | None]:
    """Open a contender and compare its pictures. It is returned only if it can be timed."""
    standing = ContenderResult(
        name=entry.name, what=entry.what, device=entry.device, precision=entry.precision, status="timed"
    )
    try:
        contender = entry.open(workload)
    except Unavailable as error:
        standing.status, standing.reason = "unavailable", str(error)
        return standing, None
    try:
        standing.agreement = stages.measure_agreement(contender, expected)
    except Exception as error:  # each library has its own errors; other contenders can still be measured
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
