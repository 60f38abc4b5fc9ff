"""Cold start and memory, each measured in a process of its own. Files are in the page cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import Entry
from benchmarks.measure.workload import ROOT, Workload


@dataclass(frozen=True, kw_only=True)
class FreshRun:
    """psp_rt without settings, on the CPU: medians over several processes; the memory is the largest."""

    what: str
    processes: int
    import_s: float
    open_s: float
    first_run_s: float
    second_run_s: float
    peak_open_mib: float
    peak_mib: float

    @property
    def first_picture_s(self) -> float:
        """Opened and first picture made, without the import."""
        return self.open_s + self.first_run_s


@dataclass(frozen=True, kw_only=True)
class ContenderRun:
    """One contender alone in a process.

    Args:
        batch: Pictures of one call.
        clones: Calls at once.
        open_s: None for weights that are drawn in place of a file.
        peak_mib: Of the host's memory.
        device_mib: Of the GPU's; None on the CPU.
    """

    contender: str
    batch: int
    clones: int
    open_s: float | None
    first_run_s: float
    second_run_s: float
    peak_mib: float
    device_mib: float | None


def measure(what: str, engine: Path, picture: Path, *, threads: int, processes: int) -> FreshRun:
    """Start processes one after the other, each of which opens the engine and runs it twice."""
    specification = {
        "engine": str(engine.resolve()),
        "pictures": str(picture.resolve()),
        "translator": {"device": "cpu", "threads": threads},
        "clones": 1,
    }
    runs = [_start("benchmarks.measure.first_run", specification) for _ in range(processes)]
    times = {
        name: float(np.median([run[name] for run in runs]))
        for name in ("import_s", "open_s", "first_run_s", "second_run_s")
    }
    peaks = {name: max(run[name] for run in runs) for name in ("peak_open_mib", "peak_mib")}
    return FreshRun(what=what, processes=processes, **times, **peaks)


def can_run_alone(entry: Entry) -> bool:
    """Return whether a contender has a process of its own; the others are the insides of psp_rt's."""
    return bool(entry.translator) or entry.in_pytorch


def measure_contender(entry: Entry, workload: Workload, *, batch: int = 1, clones: int = 1) -> ContenderRun:
    """Run a contender twice in a process.

    Raises:
        subprocess.CalledProcessError: The process failed; for want of memory, most likely.
    """
    if entry.translator:
        found = _start("benchmarks.measure.first_run", _of_psp_rt(entry, workload, batch, clones))
    else:
        found = _start("benchmarks.measure.first_pytorch_run", _of_pytorch(entry, workload, batch))
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
