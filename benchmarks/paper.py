"""Table 1 of the paper (arXiv:2008.00951), its runtime column: quoted, from another machine.

So that the comparison is fair, each figure is also scaled by the peaks of both machines' arithmetic:
what the same program would take here if it used this machine as well as that one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.timing import Timing

P40_FLOPS = 11.76e12  # Tesla P40, FP32
SECONDS = {"ALAE": 0.207, "IDInvert": 0.032, "W": 0.063, "naive W+": 0.063, "pSp": 0.106}
OUTPUT_SIDE = 1024  # of the paper's generator


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method: its seconds an image there, and what its use of the arithmetic means here."""

    method: str
    machine: str
    seconds: float
    scaled_seconds: float


def quoted(macs_per_s: float) -> list[Row]:
    """Return the paper's rows, scaled to a machine of this peak."""
    scale = P40_FLOPS / (2 * macs_per_s)
    return [
        Row(
            method=f"{method} (quoted)",
            machine="Tesla P40",
            seconds=seconds,
            scaled_seconds=seconds * scale,
        )
        for method, seconds in SECONDS.items()
    ]


def ours(kind: str, timings: Sequence[Timing], machine: str) -> list[Row]:
    """Return our rows: single pictures from file to picture."""
    return [
        Row(
            method=f"{kind} encoder, {timing.contender}",
            machine=machine,
            seconds=timing.p50_ms / 1000,
            scaled_seconds=timing.p50_ms / 1000,
        )
        for timing in timings
        if timing.stage == "end to end" and timing.batch == 1 and timing.samples_ms
    ]
