"""The first moments of a process of psp_rt: run as ``python -m benchmarks.first_run SPECIFICATION``.

Reads and prints JSON. Nothing is imported that a user of psp_rt would not import.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def main(specification: str) -> None:
    """Import psp_rt, open an engine, and translate pictures twice.

    The specification names ``engine``, ``pictures``, which are one batch, the ``translator``'s settings,
    and how many ``clones`` translate at once.
    """
    asked: dict[str, Any] = json.loads(specification)
    marks = [time.perf_counter()]
    import psp_rt

    marks.append(time.perf_counter())
    on_gpu = asked["translator"]["device"] != "cpu"
    used_before = _device_mib() if on_gpu else None
    started = time.perf_counter()
    first = psp_rt.Translator(asked["engine"], **asked["translator"])
    opened = time.perf_counter() - started
    opened_mib = peak_mib()
    translators = [first, *(first.clone() for _ in range(asked["clones"] - 1))]
    runs = []
    with ThreadPoolExecutor(len(translators)) as pool:
        for _ in range(2):
            started = time.perf_counter()
            list(pool.map(lambda translator: translator.run(asked["pictures"]), translators))
            runs.append(time.perf_counter() - started)
    used = _device_mib() if on_gpu else None
    print(
        json.dumps(
            {
                "import_s": marks[1] - marks[0],
                "open_s": opened,
                "first_run_s": runs[0],
                "second_run_s": runs[1],
                "peak_open_mib": opened_mib,
                "peak_mib": peak_mib(),
                "device_mib": None if used is None or used_before is None else used - used_before,
            }
        )
    )


def peak_mib() -> float:
    """Return the most memory that this process has had.

    Linux carries getrusage's figure over from the parent, which here is many times as large; VmHWM
    begins anew with the process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        if "VmHWM" in lines:
            return int(lines["VmHWM"].split()[0]) / 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def _device_mib() -> float | None:
    from benchmarks.measure.device_memory import used_mib

    return used_mib()


if __name__ == "__main__":
    main(sys.argv[1])
