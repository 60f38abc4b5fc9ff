"""Does a stream of frames stay whole when its source, the engine and the consumer go wrong?

    python benchmarks/soak.py --json benchmarks/results/soak.json
    python benchmarks/soak.py --hours 8

Rounds of `Translator.stream(on_error="skip")`, each on a clone that is opened for it and closed: the source
stalls, one frame in fifty is no picture, the engine fails at one frame in a hundred, and the consumer is now
and then slower than the source, or leaves early. Each result is compared with the one that its frame must
give, so that a frame that is lost, doubled or out of order is seen. Every fourth round translates a damaged
film with `psp_rt.video` and stops it at some frame.

At the end memory, open files and threads must be what they were. The exit status is 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import random
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks import ROOT, films
from benchmarks.report import provenance
from psp_rt import BackendError, PspError, Translator, video
from psp_rt.errors import InputWarning
from psp_rt.files import check_writable, write_atomically

PROGRAM = "benchmarks/soak.py"
PICTURES = 16  # different frames, in random order
ROUND_FRAMES = 150
CORRUPT, ENGINE_ERRORS = 0.02, 0.01  # parts of the frames
STALL, SLOW = 0.03, 0.03  # parts of the frames at which the source stalls, and at which the consumer is slow
STALL_SECONDS = 0.1
FILM_EVERY = 4  # rounds
GROWTH = 0.02  # of the memory, from the first quarter to the last


@dataclass
class Tally:
    """What happened."""

    rounds: int = 0
    frames_in: int = 0
    frames_out: int = 0
    corrupt: int = 0  # frames that were no pictures
    engine_errors: int = 0  # that were injected
    wrong: int = 0  # results that are not those of their frames, in their order
    missing: int = 0  # results that did not come, or came twice
    left_early: int = 0  # rounds in which the consumer left
    films: int = 0
    film_frames: int = 0
    films_wrong: int = 0  # that did not play, or had another number of frames
    milliseconds: list[float] = field(default_factory=list)  # of each frame in the engine
    memory_mib: list[float] = field(default_factory=list)  # after each round


class FailingTranslator(Translator):
    """Fails at some frames, as a driver or a full GPU would."""

    tally: Tally
    dice: random.Random

    def run(self, images: Any, **settings: Any) -> Any:
        """Translate a frame, or fail."""
        if isinstance(images, np.ndarray) and images.dtype == np.uint8 and self.dice.random() < ENGINE_ERRORS:
            self.tally.engine_errors += 1
            raise BackendError("injected: the engine failed at this frame")
        begin = time.perf_counter()
        result = super().run(images, **settings)
        self.tally.milliseconds.append(1000 * (time.perf_counter() - begin))
        return result


def stream_round(
    translator: FailingTranslator, expected: Sequence[Any], dice: random.Random, tally: Tally
) -> None:
    """Stream some frames through a clone, and compare all results."""
    shown: list[int] = []  # which picture each good frame was
    failures = tally.engine_errors
    pictures = [np.full((96, 96), 255, np.uint8) for _ in range(PICTURES)]
    for number, picture in enumerate(pictures):
        picture[10 + 3 * number : 20 + 3 * number, 10:80] = 0

    def source() -> Iterator[Any]:
        for _ in range(ROUND_FRAMES):
            if dice.random() < STALL:
                time.sleep(dice.random() * STALL_SECONDS)
            tally.frames_in += 1
            if dice.random() < CORRUPT:
                tally.corrupt += 1
                yield dice.choice([b"no picture", np.zeros((3, 3), np.float64), "missing.png"])
                continue
            shown.append(dice.randrange(PICTURES))
            yield pictures[shown[-1]]

    leave_after = dice.randrange(ROUND_FRAMES) if dice.random() < 0.2 else None
    clone = translator.clone()
    results = clone.stream(source(), in_flight=dice.choice([1, 2, 4]), on_error="skip")
    found: list[int] = []
    for result in results:
        tally.frames_out += 1
        found.append(_which(result, expected))
        if dice.random() < SLOW:
            time.sleep(dice.random() * STALL_SECONDS)
        if leave_after is not None and len(found) >= leave_after:
            tally.left_early += 1
            break
    results.close()  # type: ignore[attr-defined]  # a generator
    clone.close()

    # The results are those of the frames in their order, without those at which the engine failed.
    failed = tally.engine_errors - failures
    tally.wrong += found.count(-1) + (not _is_part(found, shown))
    if leave_after is None or len(found) < leave_after:
        tally.missing += abs(len(shown) - failed - len(found))
    tally.rounds += 1


def film_round(translator: Translator, folder: Path, film: Path, dice: random.Random, tally: Tally) -> None:
    """Translate a film that is damaged somewhere, stop it, and play it."""
    data = bytearray(film.read_bytes())
    for _ in range(dice.randrange(20)):
        data[dice.randrange(len(data) // 3, len(data))] ^= 1 << dice.randrange(8)
    damaged, target, stop = folder / "damaged.mkv", folder / "out.mp4", Event()
    damaged.write_bytes(data)
    stop_at = dice.randrange(1, 80)
    try:
        report = video.translate(
            translator,
            damaged,
            target,
            video.VideoOptions(faces="off"),
            stop=stop,
            on_progress=lambda progress: stop.set() if progress.frames >= stop_at else None,
        )
    except PspError as error:
        if "injected" not in str(error) and "cannot be" not in str(error):
            raise
        return
    tally.films += 1
    tally.film_frames += report.frames
    tally.films_wrong += video.count_frames(target) != report.frames


def _which(result: Any, expected: Sequence[Any]) -> int:
    """Return which picture gives a result; -1 if none does."""
    return next((number for number, own in enumerate(expected) if np.array_equal(result, own)), -1)


def _is_part(found: Sequence[int], shown: Sequence[int]) -> bool:
    """Return whether results follow each other as their frames did, some left out."""
    frames = iter(shown)
    return all(number in frames for number in found)


def soak(engine: Path, *, seconds: float, seed: int, say: Callable[[str], object]) -> dict[str, Any]:
    """Run rounds for a time, and return what happened."""
    dice, tally = random.Random(seed), Tally()
    with (
        tempfile.TemporaryDirectory() as name,
        FailingTranslator(engine, device="cpu", threads=1) as translator,
    ):
        folder = Path(name)
        film = films.write(folder / "film.mkv", (frame[::4, ::4] for frame in films.portraits(80)))
        translator.tally, translator.dice = Tally(), random.Random(0)
        expected = _expected(translator)
        translator.tally, translator.dice = tally, random.Random(seed + 1)
        for _ in range(3):  # what is loaded on first use is not a leak
            stream_round(translator, expected, dice, Tally())
            film_round(translator, folder, film, dice, Tally())
        gc.collect()
        tally.milliseconds.clear()
        tally.engine_errors = 0
        files, begin, told = _open_files(), time.monotonic(), time.monotonic()
        while time.monotonic() - begin < seconds or tally.rounds < 4:
            stream_round(translator, expected, dice, tally)
            if tally.rounds % FILM_EVERY == 0:
                film_round(translator, folder, film, dice, tally)
            tally.memory_mib.append(_resident_mib())
            if time.monotonic() - told > 30:
                told = time.monotonic()
                say(f"{told - begin:.0f} s: {tally.frames_in} frames in, {tally.frames_out} out")
        took = time.monotonic() - begin
        gc.collect()
        files_after = _open_files()
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("psp_rt")]
    return _summary(tally, took, files, files_after, left)


def _expected(translator: FailingTranslator) -> list[Any]:
    """Return the result of each picture."""
    results = []
    for number in range(PICTURES):
        picture = np.full((96, 96), 255, np.uint8)
        picture[10 + 3 * number : 20 + 3 * number, 10:80] = 0
        results.append(Translator.run(translator, picture))
    return results


def _summary(
    tally: Tally, seconds: float, files: int, files_after: int, threads_left: list[str]
) -> dict[str, Any]:
    quarter = max(1, len(tally.memory_mib) // 4)
    first, last = np.median(tally.memory_mib[:quarter]), np.median(tally.memory_mib[-quarter:])
    p50, p99, worst = np.percentile(tally.milliseconds, [50, 99, 100]).round(2).tolist()
    counts = asdict(tally)
    del counts["milliseconds"], counts["memory_mib"]
    broken = [
        name
        for name, value in {
            "results of other frames, or out of order": tally.wrong,
            "results lost or doubled": tally.missing,
            "films that do not play": tally.films_wrong,
            "memory grew": max(0.0, float(last / first) - 1 - GROWTH),
            "open files": files_after - files,
            "threads left": len(threads_left),
        }.items()
        if value
    ]
    return {
        "seconds": round(seconds, 1),
        **counts,
        "frames_a_second": round(tally.frames_out / seconds, 1),
        "frame_ms": {"p50": p50, "p99": p99, "worst": worst},
        "memory_mib": {"first_quarter": round(float(first), 1), "last_quarter": round(float(last), 1)},
        "memory_growth": round(float(last / first) - 1, 4),
        "open_files": {"before": files, "after": files_after},
        "threads_left": threads_left,
        "broken": broken,
    }


def _open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0  # not Linux


def _resident_mib() -> float:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak, print and write; return 1 if a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--engine", type=Path, default=ROOT / "models" / "sketch.engine")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--hours", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    if given.json is not None:
        check_writable(given.json)
    words = sys.argv[1:] if arguments is None else arguments
    about = provenance.collect(words, threads=1, program=PROGRAM)
    logging.getLogger("psp_rt").setLevel(logging.ERROR)  # each skipped frame would be a line
    warnings.simplefilter("ignore", InputWarning)
    seconds = given.seconds if given.hours is None else 3600 * given.hours
    result = soak(given.engine, seconds=seconds, seed=given.seed, say=print)
    print(json.dumps(result, indent=2))
    if given.json is not None:
        write_atomically(given.json, json.dumps({"about": about, **result}, indent=2) + "\n")
    return 1 if result["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
