"""What a contender is: one way to run a model.

N is the batch, L the number of styles, D the style dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from psp_rt.images import Pixels
from psp_rt.style import Codes

if TYPE_CHECKING:
    from benchmarks.workloads.workload import Workload

LEAST_PSNR_DB = 40.0
MOST_LEVELS = {"fp32": 1.0}  # rounding may go either way; lower precisions only have the PSNR bar


class Contender(Protocol):
    """One way to run a model. A call returns when its result is ready in host memory."""

    def encode(self, images: Pixels) -> Codes:
        """Return codes [N, L, D] of images [N, H, W, C]."""

    def with_style(self, codes: Codes, seed: int, first_row: int) -> Codes:
        """Map a seed to a style and return codes [N, L, D] with it from one row on."""

    def generate(self, codes: Codes) -> Pixels:
        """Return RGB [N, H, W, 3] of codes [N, L, D]."""

    def translate(self, pictures: Sequence[Path]) -> Sequence[Any]:
        """Return N pictures, arrays or PIL images, of picture files: everything that a user waits for."""

    def close(self) -> None:
        """Release the model's memory."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A contender that may or may not run here.

    Args:
        open: Opens the contender; raises Unavailable if it cannot run.
        translator: The settings of a `Translator`, if the contender is one.
        in_pytorch: Whether it is PyTorch.
    """

    name: str
    what: str
    device: str  # "cpu" or "cuda"
    precision: str
    open: Callable[[Workload], Contender]
    by_default: bool = True
    translator: Mapping[str, str] = field(default_factory=dict)
    in_pytorch: bool = False


class Unavailable(Exception):
    """A contender cannot run here; the message says why, and what would change that."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The difference of a contender from the reference, in its worst picture."""

    max_levels: float
    psnr_db: float

    def fault(self, precision: str) -> str:
        """Return what is wrong, or "" if the pictures agree. A contender with wrong results is not timed."""
        if not self.psnr_db >= LEAST_PSNR_DB:
            return f"its pictures differ: PSNR is {self.psnr_db:.1f} dB, expected at least {LEAST_PSNR_DB:g}"
        most = MOST_LEVELS.get(precision, np.inf)
        if not self.max_levels <= most:
            return f"its pictures differ by up to {self.max_levels:g} levels, expected at most {most:g}"
        return ""
