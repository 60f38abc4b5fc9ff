"""The stages of a translation as calls to time, and the check that contenders agree.

    read                    decode a file and resize it; the same code for all contenders
    upload                  image: host -> GPU
    encode                  image -> codes
    style-mix               seed -> style, put into the codes
    generate                codes -> picture
    download                picture: GPU -> host
    end to end              file -> picture; for the scaling also in larger batches
    1 mixed, 4 mixed        image -> pictures in one and in four random styles
    encode, generate 4      the least that four mixed pictures can cost
    4 runs                  the cost of making them one by one
    N clones                each of N clones translates two files, one after the other, all at the same time
    N clones, each          how long one file takes meanwhile

An image is an array as the encoder takes it; a file is a PNG of twice the size. On the CPU there is no
upload and no download. PyTorch on a GPU is timed stage by stage with the GPU's events. psp_rt takes and
returns host arrays, so on a GPU its encode and generate, timed by the host's clock, include the copies.

Only psp_rt takes part in the scaling, because clones are its own; for larger batches of other contenders use
--batch. The clones share the threads of the runtime, so they do not compute on more cores than one alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier

import numpy as np

from benchmarks.contenders.contender import Agreement, Contender
from benchmarks.contenders.pytorch import PyTorchOnGpu
from benchmarks.contenders.translator import PspRt
from benchmarks.measure.timing import READER, RUNS_EACH, Call, Timing, clones_stage, event_ms, wall_ms
from benchmarks.workloads.inputs import read
from benchmarks.workloads.workload import SEEDS, Workload
from export.graphs.activations import psnr_db
from psp_rt.images import Pixels
from psp_rt.style import Codes


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


class ClonePool:
    """Clones of a contender, each in its own thread."""

    def __init__(self, contender: PspRt, count: int, pictures: Sequence[Path]) -> None:
        self._pictures = list(pictures[:1])
        self._clones = [contender.clone() for _ in range(count)]
        self._pool = ThreadPoolExecutor(count)
        self._start = Barrier(count)
        self.latest_ms: Sequence[float] = ()

    def run(self) -> None:
        """Let every clone translate, and store how long each picture took."""
        self.latest_ms = [one for each in self._pool.map(self._work, self._clones) for one in each]

    def close(self) -> None:
        """Close clones and threads."""
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


def clone_pools(
    contenders: Mapping[str, Contender], workload: Workload, counts: Sequence[int]
) -> dict[tuple[str, int], ClonePool]:
    """Return clones of every contender that is a translator, by its name and their number."""
    return {
        (name, count): ClonePool(contender, count, workload.pictures)
        for count in counts
        for name, contender in contenders.items()
        if isinstance(contender, PspRt)
    }


def clone_calls(pools: Mapping[tuple[str, int], ClonePool]) -> Iterator[Call]:
    """Yield a call for each pool of clones."""
    for (name, count), pool in pools.items():
        stage = clones_stage(count)
        yield Call(
            timing=Timing(contender=name, stage=stage, batch=1, images=count * RUNS_EACH),
            run=pool.run,
            parts=Timing(contender=name, stage=f"{stage}, each", batch=1, images=1),
            parts_ms=lambda pool=pool: pool.latest_ms,  # type: ignore[misc]
        )


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The results of the reference."""

    pictures: tuple[Path, ...]
    image: Pixels  # [H, W, C], the first of them
    first_mixed_row: int
    codes: Codes  # [N, L, D]
    generated: Pixels  # [N, H, W, 3] of these codes
    mixed: Pixels  # [K, H, W, 3] of the first image in K styles


def expected_results(reference: Contender, workload: Workload) -> Expected:
    """Run the reference on a workload's pictures."""
    images = workload.images(len(workload.pictures))
    codes, row = reference.encode(images), workload.first_mixed_row
    mixed = np.concatenate([reference.with_style(codes[:1], seed, row) for seed in SEEDS])
    return Expected(
        pictures=workload.pictures,
        image=images[0],
        first_mixed_row=row,
        codes=codes,
        generated=reference.generate(codes),
        mixed=reference.generate(mixed),
    )


def measure_agreement(contender: Contender, expected: Expected) -> Agreement:
    """Compare all kinds of pictures that will be timed."""
    translated = np.stack([np.asarray(picture) for picture in contender.translate(expected.pictures)])
    found = [translated, contender.generate(expected.codes)]
    wanted = [expected.generated, expected.generated]
    mixed = [contender.with_style(expected.codes[:1], seed, expected.first_mixed_row) for seed in SEEDS]
    found.append(contender.generate(np.concatenate(mixed)))
    wanted.append(expected.mixed)
    if isinstance(contender, PspRt):
        found.append(contender.mix(expected.image, SEEDS, expected.first_mixed_row))
        wanted.append(expected.mixed)
    return compare_pictures(np.concatenate(found), np.concatenate(wanted))


def compare_pictures(found: Pixels, expected: Pixels) -> Agreement:
    """Compare pictures [N, H, W, 3] one by one; the worst one counts."""
    return Agreement(
        max_levels=float(np.abs(found.astype(np.int16) - expected.astype(np.int16)).max()),
        psnr_db=min(psnr_db(one, other) for one, other in zip(found, expected, strict=True)),
    )
