"""Cold start and memory, each measured in its own process. Files are in the page cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import ROOT
from benchmarks.contenders.contender import Entry
from benchmarks.measure.timing import ContenderRun, FreshRun

if TYPE_CHECKING:
    from benchmarks.workloads.workload import Workload

FIRST_RUN = "benchmarks.measure.first_run"


def measure(what: str, engine: Path, picture: Path, *, threads: int, processes: int) -> FreshRun:
    """Start processes one after the other, each of which opens the engine and runs it twice."""
    specification = {
        "engine": str(engine.resolve()),
        "pictures": str(picture.resolve()),
        "translator": {"device": "cpu", "threads": threads},
        "clones": 1,
    }
    runs = [_start(FIRST_RUN, specification) for _ in range(processes)]
    times = {
        name: float(np.median([run[name] for run in runs]))
        for name in ("import_s", "open_s", "first_run_s", "second_run_s")
    }
    peaks = {name: max(run[name] for run in runs) for name in ("peak_open_mib", "peak_mib")}
    return FreshRun(what=what, processes=processes, **times, **peaks)


def can_run_alone(entry: Entry) -> bool:
    """Return whether a contender gets its own process; bare sessions and requests do not."""
    return bool(entry.translator) or entry.in_pytorch


def measure_contender(entry: Entry, workload: Workload, *, batch: int = 1, clones: int = 1) -> ContenderRun:
    """Run a contender twice in a process.

    Raises:
        subprocess.CalledProcessError: The process failed, most likely for lack of memory.
    """
    if entry.translator:
        found = _start(FIRST_RUN, _of_psp_rt(entry, workload, batch, clones))
    else:
        found = _start(FIRST_RUN, _of_pytorch(entry, workload, batch))
    kept = ("open_s", "first_run_s", "second_run_s", "peak_mib", "device_mib")
    return ContenderRun(
        contender=entry.name, batch=batch, clones=clones, **{name: found[name] for name in kept}
    )


def _of_psp_rt(entry: Entry, workload: Workload, batch: int, clones: int) -> dict[str, Any]:
    pictures = [str(path.resolve()) for path in workload.pictures[:batch]]
    settings = {**entry.translator, "threads": workload.threads, "max_batch": max(4, batch)}
    return {
        "engine": str(workload.engine_of(entry.translator).resolve()),
        "pictures": pictures,
        "translator": settings,
        "clones": clones,
    }


def _of_pytorch(entry: Entry, workload: Workload, batch: int) -> dict[str, Any]:
    return {
        "contender": entry.name,
        "architecture": workload.architecture.name if workload.architecture else None,
        "engine": str(workload.engine.resolve()),
        "checkpoint": str(workload.checkpoint.resolve()) if workload.checkpoint else None,
        "threads": workload.threads,
        "batch": batch,
    }


def _start(module: str, specification: Mapping[str, Any]) -> dict[str, Any]:
    found = subprocess.run(
        [sys.executable, "-m", module, json.dumps(specification)],
        cwd=ROOT,
        env=os.environ,
        stdout=subprocess.PIPE,
        check=True,
    )
    values: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return values
