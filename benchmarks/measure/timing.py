"""Time calls in rounds, each call once per round, so that a change of clock or load affects all alike."""

import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

READER = "all"
RUNS_EACH = 2  # so that the clones run out of step, as callers do
STAGES = ("read", "upload", "encode", "style-mix", "generate", "download", "end to end")  # in their order
SETTLE_S = 0.01  # worker threads spin for a while after a call and would disturb the next one


@dataclass(kw_only=True)
class Timing:
    """The run times of one call; ``images`` is how many pictures one call makes."""

    contender: str
    stage: str
    batch: int
    images: int
    samples_ms: list[float] = field(default_factory=list)

    @property
    def p50_ms(self) -> float:
        return float(np.percentile(self.samples_ms, 50))

    def summary(self) -> dict[str, float | int]:
        """Return percentiles, mean and throughput of all runs; none is left out."""
        if not self.samples_ms:
            return {"runs": 0}
        p50, p90, p99 = np.percentile(self.samples_ms, [50, 90, 99]).tolist()
        mean = float(np.mean(self.samples_ms))
        return {
            "runs": len(self.samples_ms),
            "p50_ms": p50,
            "p90_ms": p90,
            "p99_ms": p99,
            "mean_ms": mean,
            "images_per_s": self.images / mean * 1000,
        }


def wall_ms(run: Callable[[], object]) -> float:
    """Return the milliseconds of a call by the host's clock."""
    start = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - start) / 1e6


@dataclass(frozen=True, kw_only=True)
class Call:
    """Something to time, and where its times are stored.

    Args:
        run: Returns when its result is ready; with a GPU's clock, when its work has been enqueued.
        clock: Runs it and returns the milliseconds.
        parts_ms: Returns the times of the parts of the latest run, if these are needed too.
        parts: Where these are stored.
    """

    timing: Timing
    run: Callable[[], object]
    clock: Callable[[Callable[[], object]], float] = wall_ms
    parts_ms: Callable[[], Sequence[float]] = tuple
    parts: Timing | None = None


def measure(
    calls: Sequence[Call], *, rounds: int, warmup: int, progress: Callable[[str, float], None]
) -> None:
    """Run every call ``warmup`` times, then once in each round. Times are stored immediately.

    The order changes in each round.

    Args:
        progress: Called with what runs next and the fraction that is done.
    """
    total = len(calls) * (warmup + rounds)
    done = 0
    for turn in range(-warmup, rounds):
        label = f"round {turn + 1} of {rounds}" if turn >= 0 else "warm-up"
        for call in _shuffled(calls, turn):
            progress(f"{label}: {call.timing.stage}, {call.timing.contender}", done / total)
            time.sleep(SETTLE_S)
            elapsed_ms = call.clock(call.run)
            if turn >= 0:
                call.timing.samples_ms.append(elapsed_ms)
                if call.parts is not None:
                    call.parts.samples_ms += call.parts_ms()
            done += 1


def _shuffled(calls: Sequence[Call], turn: int) -> list[Call]:
    """Return the calls in the order of one round, so that no call always follows the same other call."""
    return random.Random(turn).sample(calls, len(calls))


def event_ms(run: Callable[[], object]) -> float:
    """Return the GPU's milliseconds from the start of a call's work to its end, including gaps."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


class Progress:
    """Shows steps on standard error: one changing line on a terminal, lines per step and round in a log."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._last = ""

    def __call__(self, what: str, fraction: float | None) -> None:
        """Show what runs next, and the fraction that is done if it is known."""
        if sys.stderr.isatty():
            end = "\n" if fraction is None else ""
            print(f"\r{self._line(what, fraction)[:110]:110}", end=end, file=sys.stderr, flush=True)
            return
        part = what if fraction is None else what.partition(":")[0]  # the round, without the call
        if part != self._last:
            print(self._line(part, fraction), file=sys.stderr, flush=True)
        self._last = part

    def _line(self, what: str, fraction: float | None) -> str:
        done = "    " if fraction is None else f"{fraction:4.0%}"
        return f"{time.monotonic() - self._start:6.0f} s  {done}  {what}"


def clones_stage(count: int) -> str:
    """Return the stage's name."""
    return f"{count} clone{'s' * (count > 1)}"


@dataclass(frozen=True, kw_only=True)
class FreshRun:
    """psp_rt with default settings on the CPU: medians over several processes, and the largest memory."""

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
        """Time to open and to make the first picture, without the import."""
        return self.open_s + self.first_run_s


@dataclass(frozen=True, kw_only=True)
class ContenderRun:
    """One contender alone in a process.

    Args:
        batch: Pictures per call.
        clones: Simultaneous calls.
        open_s: None for weights that are drawn instead of read from a file.
        peak_mib: Peak host memory.
        device_mib: GPU memory; None on the CPU.
    """

    contender: str
    batch: int
    clones: int
    open_s: float | None
    first_run_s: float
    second_run_s: float
    peak_mib: float
    device_mib: float | None
