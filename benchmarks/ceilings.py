"""What this machine can do at best: a large matrix product and a large copy, timed among the contenders."""

from collections.abc import Callable

import torch

from benchmarks.timing import Call, Timing

NAME = "machine"
PRODUCT, COPY = "matrix product", "copy"


class Ceilings:
    """The two calls, and the rates that follow from their times.

    Args:
        side: Of the matrices [side, side], FP32.
        copied_bytes: Beyond every cache.
    """

    def __init__(self, *, threads: int, side: int, copied_bytes: int) -> None:
        torch.set_num_threads(threads)
        self._side, self._copied_bytes = side, copied_bytes
        self._product = Timing(contender=NAME, stage=PRODUCT, batch=1, images=0)
        self._copy = Timing(contender=NAME, stage=COPY, batch=1, images=0)

    def calls(self) -> list[Call]:
        """Return the two calls."""
        return [
            Call(timing=self._product, run=self._multiply()),
            Call(timing=self._copy, run=self._copying()),
        ]

    def _multiply(self) -> Callable[[], object]:
        left, right, out = (torch.rand(self._side, self._side) for _ in range(3))
        return lambda: torch.mm(left, right, out=out)

    def _copying(self) -> Callable[[], object]:
        source = torch.ones(self._copied_bytes // 4)
        target = torch.ones_like(source)
        return lambda: target.copy_(source)

    @property
    def measured(self) -> bool:
        """Return whether there is a time of each."""
        return bool(self._product.samples_ms and self._copy.samples_ms)

    def as_json(self) -> dict[str, float]:
        """Return the rates and what they were measured with."""
        return {
            "gmacs_per_s": self.macs_per_s() / 1e9,
            "gbytes_per_s": self.bytes_per_s() / 1e9,
            "matrix_side": self._side,
            "copied_bytes": self._copied_bytes,
        }

    def macs_per_s(self) -> float:
        """Return the median rate of the matrix product."""
        return self._side**3 / (self._product.p50_ms / 1000)

    def bytes_per_s(self) -> float:
        """Return the median rate of the copy; each byte is read and written."""
        return 2 * self._copied_bytes / (self._copy.p50_ms / 1000)
