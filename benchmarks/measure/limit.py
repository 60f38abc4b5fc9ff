"""How far each contender is from what the machine's arithmetic allows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.measure.limits import Peak
from benchmarks.measure.timing import Timing
from benchmarks.measure.work import Work

GRAPHS = {"encode": ("encoder",), "generate": ("generator",), "end to end": ("encoder", "generator")}


@dataclass(frozen=True, kw_only=True)
class Distance:
    """A contender's median beside the bound."""

    contender: str
    stage: str
    batch: int
    gmacs: float
    bound_ms: float  # the larger one of arithmetic and reading the weights
    p50_ms: float
    ratio: float


def distances(
    timings: Sequence[Timing],
    works: Mapping[tuple[str, int], Work],
    peaks: Mapping[str, Peak],
) -> list[Distance]:
    """Compare every timed stage with its bound.

    Args:
        works: Of each graph and batch size.
        peaks: Of each contender: of its device, in its precision.
    """
    found = []
    for timing in timings:
        peak = peaks.get(timing.contender)
        if peak is not None and timing.stage in GRAPHS and timing.samples_ms:
            parts = [works[graph, timing.batch] for graph in GRAPHS[timing.stage]]
            macs = sum(part.macs for part in parts)
            arithmetic_s = macs / peak.macs_per_s
            reading_s = sum(part.weight_bytes for part in parts) / peak.bytes_per_s
            bound_ms = 1000 * max(arithmetic_s, reading_s)
            found.append(
                Distance(
                    contender=timing.contender,
                    stage=timing.stage,
                    batch=timing.batch,
                    gmacs=macs / 1e9,
                    bound_ms=bound_ms,
                    p50_ms=timing.p50_ms,
                    ratio=timing.p50_ms / bound_ms,
                )
            )
    return found
