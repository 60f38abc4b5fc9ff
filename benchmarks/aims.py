"""What psp_rt is held to, as ratios of run times of one run.

    pytorch-original / psp_rt-cpu     how much faster than the original formulation
    psp_rt-cpu / sessions-cpu         what the runtime adds to its bare sessions
    4 mixed / encode, generate 4      four styles of one picture: one encode and one batch, so about 1
    4 runs / 4 mixed                  what mixing them together saves

Both sides of a ratio were timed in turns.
"""

from collections.abc import Iterator, Sequence

from benchmarks.ratios import Ratio, ratio
from benchmarks.timing import Timing

ORIGINAL, RUNTIME, SESSIONS = "pytorch-original", "psp_rt-cpu", "sessions-cpu"
Key = tuple[str, str, int]  # contender, stage, batch


def measured(timings: Sequence[Timing]) -> dict[str, Ratio]:
    """Return those ratios of which both sides were timed."""
    samples = {
        (timing.contender, timing.stage, timing.batch): timing.samples_ms
        for timing in timings
        if timing.samples_ms
    }
    return {
        name: ratio(samples[above], samples[below])
        for name, above, below in _pairs(list(samples))
        if above in samples and below in samples
    }


def _pairs(keys: Sequence[Key]) -> Iterator[tuple[str, Key, Key]]:
    for name, stage, batch in keys:
        if name == RUNTIME:
            mine, where = (RUNTIME, stage, batch), f"{stage}, batch {batch}"
            yield f"{ORIGINAL} / {RUNTIME}: {where}", (ORIGINAL, stage, batch), mine
            yield f"{RUNTIME} / {SESSIONS}: {where}", mine, (SESSIONS, stage, batch)
    for above, below in (("4 mixed", "encode, generate 4"), ("4 runs", "4 mixed")):
        yield f"{above} / {below}: {RUNTIME}", (RUNTIME, above, 1), (RUNTIME, below, 1)
