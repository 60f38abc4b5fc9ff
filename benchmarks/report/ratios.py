"""Ratios of run times, with their uncertainty."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A ratio of medians, and the interval that holds it in 95 of 100 repetitions."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Return median(above) / median(below), its interval by bootstrap (Efron, 1979)."""
    random = np.random.default_rng(0)
    low, high = np.percentile(_medians(above, random) / _medians(below, random), [2.5, 97.5]).tolist()
    return Ratio(value=float(np.median(above) / np.median(below)), low=low, high=high)


def _medians(samples: Sequence[float], random: np.random.Generator) -> np.ndarray:  # [RESAMPLES]
    drawn = random.choice(np.asarray(samples, np.float64), (RESAMPLES, len(samples)))
    medians: np.ndarray = np.median(drawn, axis=1)
    return medians
