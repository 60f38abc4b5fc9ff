"""Table 1 of the paper (arXiv:2008.00951), its runtime column: quoted, from another machine.

So that the comparison is fair, our figures are also scaled by the peaks of both machines' arithmetic: what
a contender would take on that card if it used the card as well as it uses this machine. The peak here is
the one measured in the contender's own precision, on its own device.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.measure.limits import Peak
from benchmarks.measure.timing import Timing

P40_FLOPS = 11.76e12  # Tesla P40, FP32
SECONDS = {"ALAE": 0.207, "IDInvert": 0.032, "W": 0.063, "naive W+": 0.063, "pSp": 0.106}
METHODS = {"w": "W", "naive_w+": "naive W+", "psp": "pSp"}  # by the kind of the encoder
OUTPUT_SIDE = 1024  # of the paper's generator


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method: its seconds an image, and what its use of the arithmetic would mean on a P40."""

    method: str
    contender: str  # "" for the paper's own
    machine: str
    seconds: float
    p40_seconds: float

    @property
    def is_quoted(self) -> bool:
        return not self.contender


def quoted() -> Iterator[Row]:
    """Yield the paper's rows."""
    for method, seconds in SECONDS.items():
        yield Row(method=method, contender="", machine="Tesla P40", seconds=seconds, p40_seconds=seconds)


def ours(kind: str, timings: Sequence[Timing], peaks: Mapping[str, Peak], machine: str) -> Iterator[Row]:
    """Yield our rows of one encoder: single pictures from file to picture."""
    for timing in timings:
        peak = peaks.get(timing.contender)
        if peak and timing.stage == "end to end" and timing.batch == 1 and timing.samples_ms:
            seconds = timing.p50_ms / 1000
            yield Row(
                method=METHODS.get(kind, kind),
                contender=timing.contender,
                machine=machine,
                seconds=seconds,
                p40_seconds=seconds * 2 * peak.macs_per_s / P40_FLOPS,
            )


def side_by_side(rows: Sequence[Row]) -> list[Row]:
    """Return the paper's rows, each followed by ours of the same encoder; then encoders of ours alone."""
    methods = list(dict.fromkeys([*SECONDS, *(row.method for row in rows)]))
    return sorted([*quoted(), *rows], key=lambda row: (methods.index(row.method), not row.is_quoted))
