"""What psp_rt is held to, as ratios of run times of one run.

    pytorch-original / psp_rt-...     how much faster than the original formulation on the same device
    pytorch-compiled-... / psp_rt-... and than torch.compile in FP16
    psp_rt-cpu / sessions-cpu         what the runtime adds to its bare sessions, on each backend
    4 mixed / encode, generate 4      four styles of one picture: one encode and one batch, so about 1
    4 runs / 4 mixed                  what mixing them together saves

Both sides of a ratio were timed in turns.
"""

from collections.abc import Iterator, Sequence

from benchmarks.measure.timing import Timing
from benchmarks.report.ratios import Ratio, ratio

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
        if stage not in STAGES:
            continue
        mine, where = (name, stage, batch), f"{stage}, batch {batch}"
        for other in OTHERS.get(name, ()):
            # On a GPU PyTorch's stages are timed without the copies that are in those of psp_rt.
            if "cuda" in other and stage != "end to end":
                continue
            yield f"{other} / {name}: {where}", (other, stage, batch), mine
        if name in SESSIONS:
            yield f"{name} / {SESSIONS[name]}: {where}", mine, (SESSIONS[name], stage, batch)
    for name in OTHERS:
        for above, below in (("4 mixed", "encode, generate 4"), ("4 runs", "4 mixed")):
            yield f"{above} / {below}: {name}", (name, above, 1), (name, below, 1)
