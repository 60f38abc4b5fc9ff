"""Cold start and memory, each measured in a process of its own. Files are in the page cache."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.workload import ROOT


@dataclass(frozen=True, kw_only=True)
class FreshRun:
    """Medians over several processes; the memory is the largest."""

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


def measure(what: str, engine: Path, picture: Path, *, threads: int, processes: int) -> FreshRun:
    """Start processes one after the other, each of which opens the engine and runs it twice."""
    runs = [_start(engine, picture, threads) for _ in range(processes)]
    times = {
        name: float(np.median([run[name] for run in runs]))
        for name in ("import_s", "open_s", "first_run_s", "second_run_s")
    }
    peaks = {name: max(run[name] for run in runs) for name in ("peak_open_mib", "peak_mib")}
    return FreshRun(what=what, processes=processes, **times, **peaks)


def _start(engine: Path, picture: Path, threads: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.first_run", engine.resolve(), picture.resolve(), threads]
    found = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, check=True
    )
    values: dict[str, float] = json.loads(found.stdout)
    return values
