"""The first moments of a process of PyTorch: run as ``python -m benchmarks.first_pytorch_run SPECIFICATION``.

Reads and prints JSON, as `first_run`. Weights that are drawn in place of a file have no time of opening.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.contenders import ENTRIES
from benchmarks.measure import models as architecture
from benchmarks.measure.device_memory import used_mib
from benchmarks.measure.first_run import peak_mib
from benchmarks.measure.workload import drawn_workload, given_workload


def main(specification: str) -> None:
    """Open a contender and translate pictures twice.

    The specification names the ``contender``, the ``architecture`` or else ``engine`` and ``checkpoint``,
    the ``threads``, and of how many pictures a ``batch`` is.
    """
    asked: dict[str, Any] = json.loads(specification)
    (entry,) = (entry for entry in ENTRIES if entry.name == asked["contender"])
    used_before = used_mib() if entry.device != "cpu" else None
    batch, threads = asked["batch"], asked["threads"]
    started = time.perf_counter()
    if asked["architecture"]:
        named = architecture.named(asked["architecture"])
        workload = drawn_workload(named, batch=batch, threads=threads, report=lambda step: None)
    else:
        engine, checkpoint = Path(asked["engine"]), Path(asked["checkpoint"])
        workload = given_workload(engine, checkpoint, batch=batch, threads=threads)
    contender = entry.open(workload)
    opened = time.perf_counter() - started
    opened_mib, runs = peak_mib(), []
    for _ in range(2):
        started = time.perf_counter()
        contender.translate(workload.pictures)
        runs.append(time.perf_counter() - started)
    used = used_mib() if entry.device != "cpu" else None
    print(
        json.dumps(
            {
                "open_s": None if asked["architecture"] else opened,
                "first_run_s": runs[0],
                "second_run_s": runs[1],
                "peak_open_mib": opened_mib,
                "peak_mib": peak_mib(),
                "device_mib": None if used is None or used_before is None else used - used_before,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
