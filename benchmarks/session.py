"""Measure one model: which contenders there are, whether they agree, then their times."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import agreement, fresh, timing
from benchmarks.ceilings import Ceilings
from benchmarks.contenders import ENTRIES, Contender, Entry
from benchmarks.contenders.unavailable import Unavailable
from benchmarks.results import ModelResult, Standing
from benchmarks.stages import all_calls
from benchmarks.work import graph_work
from benchmarks.workload import ROOT, Workload
from psp_rt import EngineFile

DEMONSTRATION = ROOT / "models" / "sketch.engine"
DRAWING = ROOT / "models" / "drawing.png"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run measures."""

    batches: tuple[int, ...]
    rounds: int
    warmup: int
    threads: int
    processes: int
    matrix_side: int
    copied_bytes: int
    contenders: tuple[str, ...]


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
    contenders = admit(result, entries, workload, progress)
    try:
        ceilings = Ceilings(
            threads=settings.threads, side=settings.matrix_side, copied_bytes=settings.copied_bytes
        )
        calls = [*ceilings.calls(), *all_calls(contenders, workload, settings.batches)]
        result.ceilings = ceilings
        result.timings += [call.timing for call in calls]
        timing.measure(calls, rounds=settings.rounds, warmup=settings.warmup, progress=progress)
    finally:
        for contender in contenders.values():
            contender.close()
        workload.close()
        gc.collect()


def describe(result: ModelResult, workload: Workload, settings: Settings) -> None:
    """Note what is measured: sizes and work."""
    output = workload.manifest.output
    result.input = f"{workload.input.width} x {workload.input.height} {workload.input.kind}"
    result.output = f"{output.width} x {output.height}"
    result.engine_bytes = workload.engine.stat().st_size
    with EngineFile.open(workload.engine) as engine:
        for graph in ("encoder", "generator"):
            for batch in settings.batches:
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
