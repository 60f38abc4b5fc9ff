"""What this machine can do at best: large matrix products and a large copy, timed among the contenders."""

from collections.abc import Callable

import torch

from benchmarks.timing import Call, Timing

NAME = "machine"
COPY = "copy"
PRODUCTS = {"fp32": "matrix product", "bf16": "matrix product, BF16"}
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Ceilings:
    """A product in each precision and a copy, and the rates that follow from their times.

    Args:
        side: Of the matrices [side, side].
        copied_bytes: Beyond every cache.
    """

    def __init__(self, *, threads: int, side: int, copied_bytes: int) -> None:
        torch.set_num_threads(threads)
        self._side, self._copied_bytes = side, copied_bytes
        self._products = {
            precision: Timing(contender=NAME, stage=stage, batch=1, images=0)
            for precision, stage in PRODUCTS.items()
        }
        self._copy = Timing(contender=NAME, stage=COPY, batch=1, images=0)

    def calls(self) -> list[Call]:
        """Return the calls to time."""
        products = [
            Call(timing=timing, run=self._multiply(TYPES[precision]))
            for precision, timing in self._products.items()
        ]
        return [*products, Call(timing=self._copy, run=self._copying())]

    def _multiply(self, dtype: torch.dtype) -> Callable[[], object]:
        left, right, out = (torch.rand(self._side, self._side).to(dtype) for _ in range(3))
        return lambda: torch.mm(left, right, out=out)

    def _copying(self) -> Callable[[], object]:
        source = torch.ones(self._copied_bytes // 4)
        target = torch.ones_like(source)
        return lambda: target.copy_(source)

    @property
    def measured(self) -> bool:
        """Return whether there is a time of each."""
        products = [timing.samples_ms for timing in self._products.values()]
        return bool(all(products) and self._copy.samples_ms)

    def as_json(self) -> dict[str, float]:
        """Return the rates and what they were measured with."""
        return {
            "gmacs_per_s": self.macs_per_s() / 1e9,
            "bf16_gmacs_per_s": self.macs_per_s("bf16") / 1e9,
            "gbytes_per_s": self.bytes_per_s() / 1e9,
            "matrix_side": self._side,
            "copied_bytes": self._copied_bytes,
        }

    def macs_per_s(self, precision: str = "fp32") -> float:
        """Return the median rate of the matrix product."""
        return self._side**3 / (self._products[precision].p50_ms / 1000)

    def bytes_per_s(self) -> float:
        """Return the median rate of the copy; each byte is read and written."""
        return 2 * self._copied_bytes / (self._copy.p50_ms / 1000)
