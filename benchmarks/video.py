"""How calm, how fast and how steady `psp_rt.video` is.

    python benchmarks/video.py --json benchmarks/results/video.json

flicker     A portrait that does not move, with new noise in every frame. What remains of the noise in the
            model's pictures is compared between crops at one fixed place, which is what the noise itself
            gives through the model, and crops where the faces are found. The aim is less than 1.5.
throughput  A film of two people. Each stage works alone on all frames, then all work at once. The aim is 95 %
            of what the slowest stage alone allows; where the stages together need more than the processor's
            cores have, no order of work can do better than those, so that limit is given too.
memory      A film of 5,000 frames, whole frames through the model: the memory of the process may grow by 2 %
            from the first thousand frames to the last.

Times are wall-clock times; run it on an otherwise idle machine. The load before the run is in the result.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from PIL import Image

from benchmarks import ROOT, films
from benchmarks.report import provenance
from psp_rt import Translator, video
from psp_rt.faces import MeshFinder, crop
from psp_rt.files import check_writable, write_atomically

PROGRAM = "benchmarks/video.py"
NOISES = (2.0, 5.0, 10.0)  # standard deviations in gray levels
GOALS = {"flicker": 1.5, "throughput": 0.95, "memory_growth": 0.02}


def flicker(translator: Translator, *, frames: int) -> list[dict[str, float]]:
    """Return, for each noise, how much the model's pictures change from frame to frame."""
    spec = translator.manifest.input
    assert spec is not None
    size = max(spec.width, spec.height)
    finder = MeshFinder()
    clean = next(films.still(1, noise=0.0))
    place = finder.find(clean)[0]
    rows = []
    for noise in NOISES:
        fixed, raw, steady = list[Any](), list[Any](), list[Any]()
        trackers = [video.Tracker(finder, steady=False), video.Tracker(finder)]
        for number, frame in enumerate(films.still(frames, noise=noise)):
            fixed.append(_run(translator, crop(frame, place, size)))
            for tracker, results in zip(trackers, (raw, steady), strict=True):
                found = tracker.follow(frame, number / 25)[0].face
                results.append(_run(translator, crop(frame, found, size)))
        of_noise = _change(fixed)
        rows.append(
            {
                "noise": noise,
                "levels_fixed": round(of_noise, 3),
                "levels_found": round(_change(raw), 3),
                "levels_steady": round(_change(steady), 3),
                "ratio_found": round(_change(raw) / of_noise, 3),
                "ratio": round(_change(steady) / of_noise, 3),
            }
        )
    return rows


def _run(translator: Translator, picture: Image.Image) -> Any:
    return np.asarray(translator.run(picture)).astype(np.int16)


def _change(pictures: Sequence[Any]) -> float:
    """Return the mean change of a pixel from frame to frame, after the filters have settled."""
    settled = np.stack(pictures[len(pictures) // 5 :])
    return float(np.abs(np.diff(settled, axis=0)).mean())


def throughput(translator: Translator, folder: Path, *, frames: int, people: int) -> dict[str, Any]:
    """Return how long each stage takes alone, and all of them at once."""
    source = films.write(folder / "people.mp4", films.portraits(frames, people=people))
    alone = video.time_stages(translator, source, folder / "alone.mp4")
    cpu, begin = _cpu_seconds(), time.perf_counter()
    report = video.translate(translator, source, folder / "out.mp4", video.VideoOptions(faces="all"))
    seconds, cpu = time.perf_counter() - begin, _cpu_seconds() - cpu
    slowest = max(alone, key=lambda stage: stage.working)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = max(slowest.working, cpu / cores)
    return {
        "people": people,
        "frames": report.frames,
        "ms_alone": {stage.name: round(1000 * stage.working / report.frames, 2) for stage in alone},
        "ms_one_after_another": round(1000 * sum(stage.working for stage in alone) / report.frames, 2),
        "ms_at_once": round(1000 * seconds / report.frames, 2),
        "cpu_ms": round(1000 * cpu / report.frames, 2),
        "slowest": slowest.name,
        "of_slowest_stage": round(slowest.working / seconds, 3),
        "of_slowest_stage_or_cores": round(limit / seconds, 3),
    }


def memory(translator: Translator, folder: Path, *, frames: int) -> dict[str, float]:
    """Return how much memory the process has on the way."""
    small = (frame[::4, ::4] for frame in films.portraits(frames))
    source = films.write(folder / "long.mp4", small)
    seen: list[int] = []
    video.translate(
        translator,
        source,
        folder / "long-out.mp4",
        video.VideoOptions(faces="off"),
        on_progress=lambda progress: seen.append(_resident_kib()) if progress.frames % 50 == 0 else None,
    )
    fifth = max(1, len(seen) // 5)
    first, last = float(np.median(seen[:fifth])), float(np.median(seen[-fifth:]))
    return {
        "frames": frames,
        "first_mib": round(first / 1024, 1),
        "last_mib": round(last / 1024, 1),
        "growth": round(last / first - 1, 4),
    }


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _resident_kib() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux: the peak is what there is
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * resource.getpagesize() // 1024


def measure(
    translator: Translator,
    *,
    frames: int,
    long_frames: int,
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Return all results."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results: dict[str, Any] = {"flicker": flicker(translator, frames=frames)}
        for row in results["flicker"]:
            say(f"noise {row['noise']}: flickers {row['ratio']} times as much as the noise gives")
        results["throughput"] = [
            throughput(translator, folder, frames=frames, people=people) for people in (1, 2)
        ]
        for row in results["throughput"]:
            say(
                f"{row['people']} faces: {row['ms_at_once']} ms a frame, {row['slowest']} alone "
                f"{row['ms_alone'][row['slowest']]} ms"
            )
        results["memory"] = memory(translator, folder, frames=long_frames)
        say(f"memory grows by {results['memory']['growth']:.2%}")
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; return 1 if an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--engine", type=Path, default=ROOT / "models" / "inversion.engine")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--long-frames", type=int, default=5000)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    if given.json is not None:
        check_writable(given.json)
    with Translator(given.engine, device="cpu", threads=given.threads, color="rgb") as translator:
        about = provenance.collect(
            sys.argv[1:] if arguments is None else arguments, threads=given.threads or 0, program=PROGRAM
        )
        results = measure(translator, frames=given.frames, long_frames=given.long_frames)
    missed = [
        *(
            f"flicker at noise {row['noise']}"
            for row in results["flicker"]
            if row["ratio"] >= GOALS["flicker"]
        ),
        *(
            f"throughput with {row['people']} faces"
            for row in results["throughput"]
            if row["of_slowest_stage"] < GOALS["throughput"]
        ),
        *(["memory"] if results["memory"]["growth"] > GOALS["memory_growth"] else []),
    ]
    print("missed: " + ", ".join(missed) if missed else "all aims are met")
    if given.json is not None:
        content = {"about": about, "goals": GOALS, "missed": missed, **results}
        write_atomically(given.json, json.dumps(content, indent=2) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
