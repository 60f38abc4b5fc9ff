"""Mean and spread of a model's codes, and how far another code lies from them.

    styles.f32   float32 [2, D]      of the mapping network's styles w: random results, and the average
    codes.f32    float32 [2, L, D]   of the codes of pictures such as the encoder was trained on

    distance(code) = root of the mean of ((code - mean) / spread)^2 over all L * D numbers

What is usual is measured on the encoder's own codes: official encoders go far beyond the mapping network's
styles (into W+) for good pictures, and the demonstration's lie four times as far from them as random styles
do, while noise lies no farther.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import FormatError

STYLES, CODES = "styles.f32", "codes.f32"  # members
_LEAST_SPREAD = 1e-3  # of the mean spread: a number that never changes must not decide alone

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """Mean and standard deviation of each number, over many styles or codes."""

    mean: Floats  # [D] or [L, D]
    spread: Floats

    @classmethod
    def of(cls, values: Floats) -> Statistics:
        """Measure styles [N, D] or codes [N, L, D]."""
        return cls(
            mean=values.mean(0, dtype=np.float64).astype(np.float32),
            spread=values.std(0, dtype=np.float64).astype(np.float32),
        )

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, *shape: int, member: str) -> Statistics:
        """Read a member of an engine.

        Raises:
            FormatError: It has another size, or holds other than finite numbers.
        """
        size = 8 * int(np.prod(shape))
        values = np.frombuffer(bytes(data), "<f4") if len(data) == size else np.empty(0, np.float32)
        if not values.size or not np.isfinite(values).all() or (values[values.size // 2 :] < 0).any():
            raise FormatError(
                f"{member} has {len(data)} bytes; expected mean and spread of {list(shape)} finite numbers, "
                f"{size} bytes: export the engine again"
            )
        mean, spread = values.astype(np.float32).reshape(2, *shape)
        return cls(mean=mean, spread=spread)

    def to_bytes(self) -> bytes:
        """Return the member of an engine."""
        return np.stack([self.mean, self.spread]).astype("<f4").tobytes()

    def distance(self, codes: Floats) -> npt.NDArray[np.float64]:
        """Return the distance of each code [N, L, D], [N]."""
        least = max(float(self.spread.mean()) * _LEAST_SPREAD, float(np.finfo(np.float32).tiny))
        scaled = (codes - self.mean) / np.maximum(self.spread, least)
        squares: npt.NDArray[np.float64] = np.square(scaled, dtype=np.float64).mean(axis=(1, 2))
        return np.sqrt(squares)
