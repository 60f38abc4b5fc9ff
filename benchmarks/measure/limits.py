"""What this machine can do at best: large products and a large copy, timed among the contenders.

On a CPU the product is a convolution of the encoder's kind, by oneDNN: PyTorch's matrix product is MKL's, and
on an AMD processor reaches less than half of that: every contender was beyond it. Those of a GPU have not
run yet.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from benchmarks.measure.gpu_clock import event_ms
from benchmarks.measure.timing import Call, Timing, wall_ms

Device = Literal["cpu", "cuda"]
NAMES: dict[str, str] = {"cpu": "machine", "cuda": "GPU"}
COPY = "copy"
MAP_SIDE = 64  # pixels, of the product on a CPU: 512 channels to 512, as the encoder's fine heads begin
PRODUCTS = {
    "fp32": "large product",
    "bf16": "large product, BF16",
    "fp16": "large product, FP16",
}
PRECISIONS: dict[str, tuple[str, ...]] = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "fp16")}
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What a contender's device can do at best in its precision."""

    macs_per_s: float
    bytes_per_s: float


class Ceilings:
    """A product in each precision and a copy, and the rates that follow from their times.

    Args:
        side: Of the matrices [side, side]; on a CPU four times the channels of the convolution.
        copied_bytes: Beyond every cache.
    """

    def __init__(self, *, threads: int, side: int, copied_bytes: int, device: Device = "cpu") -> None:
        torch.set_num_threads(threads)
        self._side, self._copied_bytes, self._device = side, copied_bytes, device
        self._products = {
            precision: Timing(contender=NAMES[device], stage=PRODUCTS[precision], batch=1, images=0)
            for precision in PRECISIONS[device]
        }
        self._copy = Timing(contender=NAMES[device], stage=COPY, batch=1, images=0)

    def calls(self) -> list[Call]:
        """Return the calls to time."""
        clock = wall_ms if self._device == "cpu" else event_ms
        products = [
            Call(timing=timing, run=self._multiply(TYPES[precision]), clock=clock)
            for precision, timing in self._products.items()
        ]
        return [*products, Call(timing=self._copy, run=self._copying(), clock=clock)]

    @property
    def _macs(self) -> int:
        """Multiplications of one product."""
        if self._device == "cpu":
            return (self._side // 4) ** 2 * 9 * MAP_SIDE**2
        return int(self._side**3)

    def _multiply(self, dtype: torch.dtype) -> Callable[[], object]:
        if self._device == "cpu":
            channels = self._side // 4
            layer = torch.nn.Conv2d(channels, channels, 3, padding=1, dtype=dtype)
            layer = layer.to(memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
            inputs = torch.rand(1, channels, MAP_SIDE, MAP_SIDE).to(dtype, memory_format=torch.channels_last)
            return lambda: layer(inputs)
        shape = (self._side, self._side)
        left, right, out = (torch.rand(shape, device=self._device).to(dtype) for _ in range(3))
        return lambda: torch.mm(left, right, out=out)

    def _copying(self) -> Callable[[], object]:
        source = torch.ones(self._copied_bytes // 4, device=self._device)
        target = torch.ones_like(source)
        return lambda: target.copy_(source)

    @property
    def measured(self) -> bool:
        """Return whether there is a time of each."""
        products = [timing.samples_ms for timing in self._products.values()]
        return bool(all(products) and self._copy.samples_ms)

    def as_json(self) -> dict[str, float]:
        """Return the rates and what they were measured with."""
        products = {
            "gmacs_per_s" if precision == "fp32" else f"{precision}_gmacs_per_s": self.macs_per_s(precision)
            for precision in self._products
        }
        return {
            **{name: rate / 1e9 for name, rate in products.items()},
            "gbytes_per_s": self.bytes_per_s() / 1e9,
            "matrix_side": self._side,
            "copied_bytes": self._copied_bytes,
        }

    def __str__(self) -> str:
        """Return the rates in words."""
        products = [
            f"{self.macs_per_s(precision) / 1e9:.1f} GMAC/s ({precision.upper()} product)"
            for precision in self._products
        ]
        return f"{', '.join(products)}, {self.bytes_per_s() / 1e9:.1f} GB/s (copy)"

    def peak(self, precision: str) -> Peak:
        """Return the rates of a precision."""
        return Peak(macs_per_s=self.macs_per_s(precision), bytes_per_s=self.bytes_per_s())

    def macs_per_s(self, precision: str = "fp32") -> float:
        """Return the median rate of the product."""
        return self._macs / (self._products[precision].p50_ms / 1000)

    def bytes_per_s(self) -> float:
        """Return the median rate of the copy; each byte is read and written."""
        return 2 * self._copied_bytes / (self._copy.p50_ms / 1000)
