"""Calls with more pictures at once: as one batch, and by clones of a translator in threads of their own.

    end to end, batch N     N files -> N pictures, in one call
    N clones                each of N clones translates two files, one after the other, all at the same time
    N clones, each          how long one file takes meanwhile

Only psp_rt takes part: clones are its own, and batches of all contenders are had by naming them. The clones
share the threads of the runtime, so no more of them compute than with one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from benchmarks.contenders import Contender
from benchmarks.contenders.translator import PspRt
from benchmarks.measure.stages import end_to_end
from benchmarks.measure.timing import Call, Timing, wall_ms
from benchmarks.measure.workload import Workload

RUNS_EACH = 2  # so that the clones get out of step, as callers are


class Crew:
    """Clones of a contender, each with a thread."""

    def __init__(self, contender: PspRt, count: int, pictures: Sequence[Path]) -> None:
        self._pictures = list(pictures[:1])
        self._clones = [contender.clone() for _ in range(count)]
        self._pool = ThreadPoolExecutor(count)
        self._start = Barrier(count)
        self.latest_ms: Sequence[float] = ()

    def run(self) -> None:
        """Let every clone translate; keep how long each picture took."""
        self.latest_ms = [one for each in self._pool.map(self._work, self._clones) for one in each]

    def close(self) -> None:
        """Let go of clones and threads."""
        self._pool.shutdown()
        for clone in self._clones:
            clone.close()

    def _work(self, clone: PspRt) -> list[float]:
        self._start.wait()
        return [wall_ms(lambda: clone.translate(self._pictures)) for _ in range(RUNS_EACH)]


def batch_calls(
    contenders: Mapping[str, Contender], workload: Workload, batches: Sequence[int]
) -> Iterator[Call]:
    """Yield a call for each batch size."""
    for batch in batches:
        for name, contender in contenders.items():
            if isinstance(contender, PspRt):
                yield end_to_end(name, contender, workload, batch)


def crews(
    contenders: Mapping[str, Contender], workload: Workload, counts: Sequence[int]
) -> dict[tuple[str, int], Crew]:
    """Return clones of every contender that is a translator, by its name and their number."""
    return {
        (name, count): Crew(contender, count, workload.pictures)
        for count in counts
        for name, contender in contenders.items()
        if isinstance(contender, PspRt)
    }


def clone_calls(working: Mapping[tuple[str, int], Crew]) -> Iterator[Call]:
    """Yield a call for each crew."""
    for (name, count), crew in working.items():
        stage = clones_stage(count)
        yield Call(
            timing=Timing(contender=name, stage=stage, batch=1, images=count * RUNS_EACH),
            run=crew.run,
            parts=Timing(contender=name, stage=f"{stage}, each", batch=1, images=1),
            parts_ms=lambda crew=crew: crew.latest_ms,  # type: ignore[misc]
        )


def clones_stage(count: int) -> str:
    """Return the stage's name."""
    return f"{count} clone{'s' * (count > 1)}"
