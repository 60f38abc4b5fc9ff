"""The first moments of a process: run as ``python -m benchmarks.first_run ENGINE PICTURE THREADS``.

Prints JSON. Nothing is imported that a user of psp_rt would not import.
"""

import json
import sys
import time
from pathlib import Path


def main(engine: str, picture: str, threads: str) -> None:
    """Import psp_rt, open an engine, and translate a picture twice."""
    marks = [time.perf_counter()]
    import psp_rt

    marks.append(time.perf_counter())
    translator = psp_rt.Translator(engine, device="cpu", threads=int(threads))
    marks.append(time.perf_counter())
    opened_mib = peak_mib()
    for _ in range(2):
        translator.run(picture)
        marks.append(time.perf_counter())
    names = ("import_s", "open_s", "first_run_s", "second_run_s")
    times = {name: marks[index + 1] - marks[index] for index, name in enumerate(names)}
    print(json.dumps({**times, "peak_open_mib": opened_mib, "peak_mib": peak_mib()}))


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


if __name__ == "__main__":
    main(*sys.argv[1:])
