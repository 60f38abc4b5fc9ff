"""A straight line through measured points: a fixed part, and one that grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST_POINTS = 3  # through two, every line fits


@dataclass(frozen=True, kw_only=True)
class Line:
    """value = fixed + slope * x, by least squares.

    Args:
        residual: Root mean square of what is left, over the points less the two that a line takes.
    """

    fixed: float
    slope: float
    residual: float

    def __call__(self, x: float) -> float:
        return self.fixed + self.slope * x


def fit(xs: Sequence[float], ys: Sequence[float]) -> Line | None:
    """Return the line of least squares, or None for too few points to judge one by."""
    if len(set(xs)) < LEAST_POINTS:
        return None
    columns = np.stack([np.ones(len(xs)), np.asarray(xs, np.float64)], axis=1)  # [points, 2]
    (fixed, slope), *_ = np.linalg.lstsq(columns, np.asarray(ys, np.float64))
    left = np.asarray(ys) - (fixed + slope * np.asarray(xs))
    residual = float(np.sqrt(np.square(left).sum() / (len(xs) - 2)))
    return Line(fixed=float(fixed), slope=float(slope), residual=residual)
