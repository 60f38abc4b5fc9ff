"""The truncation trick: codes are moved towards the average, which is duller and safer.

    code[i] = average + psi[i] * (code[i] - average)

Karras et al., "A Style-Based Generator Architecture for GANs" (arXiv:1812.04948), section 3 and appendix B.
Mixing is linear, so a truncation of the code and of the styles mixed into it is a mix as well:

    (1 - a) (avg + psi (code - avg)) + a (avg + psi (ref - avg))
        = (1 - weight) code + weight * reference
    with weight = 1 - psi (1 - a)  and  weight * reference = (1 - psi) avg + psi a ref

and runs on every backend through the same graph.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .style import Codes, layer_rows

Truncation = float | tuple[float, str]


def strengths(truncation: Any, num_styles: int) -> Codes:
    """Return psi for each row [L] of a truncation: a number, or a number and the paper's layers.

    Example:
        >>> strengths((0.5, "1-2"), 4)
        array([0.5, 0.5, 1. , 1. ], dtype=float32)
    """
    psi, layers = truncation if isinstance(truncation, tuple) and len(truncation) == 2 else (truncation, None)
    is_number = isinstance(psi, (int, float, np.integer, np.floating)) and not isinstance(psi, bool)
    if not is_number or not 0 <= psi <= 1:
        raise InputError(
            f"truncation is {truncation!r}; expected psi from 0 (the average) to 1 (unchanged), such as 0.7, "
            "or with layers: (0.7, '1-8')"
        )
    rows = np.ones(num_styles, np.float32)
    rows[slice(None) if layers is None else layer_rows(layers, num_styles)] = psi
    return rows


def truncate(codes: Codes, average: Codes, psi: Codes) -> Codes:
    """Return codes [..., L, D] moved towards the average [L, D]."""
    moved: Codes = average + psi[:, None] * (codes - average)
    return moved


def truncated_mix(reference: Codes, weights: Codes, average: Codes, psi: Codes) -> tuple[Codes, Codes]:
    """Return reference [K, L, D] and weights [K, L] that mix and truncate as the docstring above says."""
    towards = weights.astype(np.float64)
    moved: npt.NDArray[np.float64] = 1 - psi * (1 - towards)
    sums = (1 - psi)[:, None] * average.astype(np.float64) + (psi * towards)[..., None] * reference
    divisor = np.where(moved == 0, 1, moved)  # a row that does not move needs no reference
    return (sums / divisor[..., None]).astype(np.float32), moved.astype(np.float32)
