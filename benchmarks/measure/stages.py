"""The stages of a translation, as calls to time.

    read                  decode a file and resize it; the same code for all contenders
    upload                image: host -> GPU
    encode                image -> codes
    style-mix             seed -> style, put into the codes
    generate              codes -> picture
    download              picture: GPU -> host
    end to end            file -> picture
    1 mixed, 4 mixed      image -> pictures in one and in four random styles
    encode, generate 4    what four mixed pictures may cost at most
    4 runs                what they cost one by one

An image is an array as the encoder takes it; a file is a PNG of twice the size. On the CPU there is no
upload and no download. PyTorch on a GPU is timed by the GPU's events, stage by stage; psp_rt takes and gives
arrays of the host, so on a GPU its encode and generate, by the host's clock, hold their copies.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from benchmarks.contenders import Contender
from benchmarks.contenders.pytorch_gpu import PyTorchOnGpu
from benchmarks.contenders.translator import PspRt
from benchmarks.measure.gpu_clock import event_ms
from benchmarks.measure.timing import Call, Timing, wall_ms
from benchmarks.measure.workload import SEEDS, Workload, read

READER = "all"
STAGES = ("read", "upload", "encode", "style-mix", "generate", "download", "end to end")  # in their order


def all_calls(contenders: Mapping[str, Contender], workload: Workload, batches: Sequence[int]) -> list[Call]:
    """Return all calls, those of one stage side by side."""
    calls = list(_reading(workload, batches))
    for name, contender in contenders.items():
        for batch in batches:
            calls += _stages(name, contender, workload, batch)
        if isinstance(contender, PspRt):
            calls += _mixing(name, contender, workload)
    stages = list(dict.fromkeys((call.timing.stage, call.timing.batch) for call in calls))
    return sorted(calls, key=lambda call: stages.index((call.timing.stage, call.timing.batch)))


def _reading(workload: Workload, batches: Sequence[int]) -> Iterator[Call]:
    for batch in batches:
        pictures = workload.pictures[:batch]
        timing = Timing(contender=READER, stage="read", batch=batch, images=batch)
        yield Call(timing=timing, run=lambda pictures=pictures: read(pictures, workload.input))  # type: ignore[misc]


def _stages(name: str, contender: Contender, workload: Workload, batch: int) -> list[Call]:
    images, row = workload.images(batch), workload.first_mixed_row
    whole = end_to_end(name, contender, workload, batch)
    if isinstance(contender, PyTorchOnGpu):
        stages = contender.device_stages(images, SEEDS[0], row)
        return [*_calls(name, batch, stages, event_ms), whole]
    codes = contender.encode(images)
    stages = {
        "encode": lambda: contender.encode(images),
        "style-mix": lambda: contender.with_style(codes, SEEDS[0], row),
        "generate": lambda: contender.generate(codes),
    }
    return [*_calls(name, batch, stages, wall_ms), whole]


def end_to_end(name: str, contender: Contender, workload: Workload, batch: int) -> Call:
    """Return the call from files to pictures."""
    pictures = workload.pictures[:batch]
    timing = Timing(contender=name, stage="end to end", batch=batch, images=batch)
    return Call(timing=timing, run=lambda: contender.translate(pictures))


def _calls(
    name: str, batch: int, stages: Mapping[str, Callable[[], object]], clock: Callable[..., float]
) -> list[Call]:
    return [
        Call(
            timing=Timing(contender=name, stage=stage, batch=batch, images=batch * (stage != "style-mix")),
            run=run,
            clock=clock,
        )
        for stage, run in stages.items()
    ]


def _mixing(name: str, contender: PspRt, workload: Workload) -> list[Call]:
    image, row = workload.images(1), workload.first_mixed_row
    codes = np.repeat(contender.encode(image), len(SEEDS), axis=0)

    def separately() -> None:
        for seed in SEEDS:
            contender.mix(image[0], [seed], row)

    def at_most() -> None:
        contender.encode(image)
        contender.generate(codes)

    several = len(SEEDS)
    stages = {
        "1 mixed": (1, lambda: contender.mix(image[0], SEEDS[:1], row)),
        f"{several} mixed": (several, lambda: contender.mix(image[0], SEEDS, row)),
        f"encode, generate {several}": (several, at_most),
        f"{several} runs": (several, separately),
    }
    return [
        Call(timing=Timing(contender=name, stage=stage, batch=1, images=images), run=run)
        for stage, (images, run) in stages.items()
    ]
