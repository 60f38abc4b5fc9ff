"""Do all contenders compute the same? Who computes something else is not timed: it would only look fast."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.contenders import Contender
from benchmarks.contenders.translator import PspRt
from benchmarks.measure.workload import SEEDS, Workload
from export.parity import psnr_db
from psp_rt.images import Pixels
from psp_rt.style import Codes

LEAST_PSNR_DB = 40.0
MOST_LEVELS = {"fp32": 1.0}  # rounding may fall either way; a lower precision has only the other bar


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the reference computes."""

    pictures: tuple[Path, ...]
    image: Pixels  # [H, W, C], the first of them
    first_mixed_row: int
    codes: Codes  # [N, L, D]
    generated: Pixels  # [N, H, W, 3] of these codes
    mixed: Pixels  # [K, H, W, 3] of the first image in K styles


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far a contender is from the reference, in its worst picture."""

    max_levels: float
    psnr_db: float

    def fault(self, precision: str) -> str:
        """Return what is wrong, or nothing."""
        if not self.psnr_db >= LEAST_PSNR_DB:
            return f"its pictures differ: PSNR is {self.psnr_db:.1f} dB, expected at least {LEAST_PSNR_DB:g}"
        most = MOST_LEVELS.get(precision, np.inf)
        if not self.max_levels <= most:
            return f"its pictures differ by up to {self.max_levels:g} levels, expected at most {most:g}"
        return ""


def expect(reference: Contender, workload: Workload) -> Expected:
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


def measure(contender: Contender, expected: Expected) -> Agreement:
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
    return compare(np.concatenate(found), np.concatenate(wanted))


def compare(found: Pixels, expected: Pixels) -> Agreement:
    """Compare pictures [N, H, W, 3] one by one; the worst one counts."""
    return Agreement(
        max_levels=float(np.abs(found.astype(np.int16) - expected.astype(np.int16)).max()),
        psnr_db=min(psnr_db(one, other) for one, other in zip(found, expected, strict=True)),
    )
