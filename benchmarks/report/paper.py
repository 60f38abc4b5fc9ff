"""The figures that psp_rt is compared with: the paper's runtime column, and ratios of run times of one run.

Table 1 of the paper (arXiv:2008.00951) is quoted from another machine. For a fair comparison, our figures are
also scaled by the peaks of both machines' arithmetic: the time that a contender would take on that card if it
used the card as well as it uses this machine. The peak here is measured in the contender's own precision, on
its own device. The ratios are:

    pytorch-original / psp_rt-...     speed-up over the original formulation on the same device
    pytorch-compiled-... / psp_rt-... and over torch.compile in FP16
    psp_rt-cpu / sessions-cpu         overhead of the runtime over its bare sessions, on each backend
    4 mixed / encode, generate 4      four styles of one picture: one encode and one batch, so about 1
    4 runs / 4 mixed                  what mixing them together saves

Both sides of a ratio were timed in turns.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.measure.limits import Peak
from benchmarks.measure.timing import Timing
from benchmarks.report.statistics import Ratio, ratio

P40_FLOPS = 11.76e12  # Tesla P40, FP32
SECONDS = {"ALAE": 0.207, "IDInvert": 0.032, "W": 0.063, "naive W+": 0.063, "pSp": 0.106}
METHODS = {"w": "W", "naive_w+": "naive W+", "psp": "pSp"}  # by the kind of the encoder
OUTPUT_SIDE = 1024  # of the paper's generator


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method: its seconds per image, measured and scaled to a P40."""

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
    """Yield our rows for one encoder: single pictures, from file to picture."""
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
    """Return the paper's rows, each followed by ours of the same encoder, then our other encoders."""
    methods = list(dict.fromkeys([*SECONDS, *(row.method for row in rows)]))
    return sorted([*quoted(), *rows], key=lambda row: (methods.index(row.method), not row.is_quoted))


OTHERS = {
    "psp_rt-cpu": ("pytorch-original",),
    "psp_rt-openvino": ("pytorch-original",),
    "psp_rt-openvino-bf16": ("pytorch-original-bf16",),
    "psp_rt-cuda": ("pytorch-original-cuda",),
    "psp_rt-tensorrt": ("pytorch-original-cuda",),
    "psp_rt-tensorrt-fp16": ("pytorch-original-cuda", "pytorch-compiled-cuda-fp16"),
}
SESSIONS = {"psp_rt-cpu": "sessions-cpu", "psp_rt-openvino": "sessions-openvino"}
STAGES = ("encode", "generate", "end to end")
Key = tuple[str, str, int]  # contender, stage, batch


def measured_aims(timings: Sequence[Timing]) -> dict[str, Ratio]:
    """Return the ratios of which both sides were timed."""
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
        if stage not in STAGES:
            continue
        mine, where = (name, stage, batch), f"{stage}, batch {batch}"
        for other in OTHERS.get(name, ()):
            # On a GPU, PyTorch's stages are timed without the copies that psp_rt's stages include.
            if "cuda" in other and stage != "end to end":
                continue
            yield f"{other} / {name}: {where}", (other, stage, batch), mine
        if name in SESSIONS:
            yield f"{name} / {SESSIONS[name]}: {where}", mine, (SESSIONS[name], stage, batch)
    for name in OTHERS:
        for above, below in (("4 mixed", "encode, generate 4"), ("4 runs", "4 mixed")):
            yield f"{above} / {below}: {name}", (name, above, 1), (name, below, 1)
