"""Time calls in rounds, each once a round, so that a change of clock or load touches all alike."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

SETTLE_S = 0.01  # worker threads spin for a while after a call; they must not disturb the next one


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
        """Return percentiles, mean and throughput of all runs: none is left out."""
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
    """Something to time, and where its times go.

    Args:
        run: Returns when its result is ready; where ``clock`` is a GPU's, when its work is in the queue.
        clock: Runs it and returns the milliseconds.
        parts_ms: Returns the times of the parts of the latest run, where those are wanted too.
        parts: Where they go.
    """

    timing: Timing
    run: Callable[[], object]
    clock: Callable[[Callable[[], object]], float] = wall_ms
    parts_ms: Callable[[], Sequence[float]] = tuple
    parts: Timing | None = None


def measure(
    calls: Sequence[Call], *, rounds: int, warmup: int, progress: Callable[[str, float], None]
) -> None:
    """Run every call ``warmup`` times, then once in each round; times are noted as they come.

    The order is another one in each round.

    Args:
        progress: Told what runs next, and the fraction that is done.
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
    """Return the calls in the order of one round: none may always find the caches as another left them."""
    return random.Random(turn).sample(calls, len(calls))
