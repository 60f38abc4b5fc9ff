"""Style mixing: which rows of a code move how far towards which other code.

    code[i] = (1 - alpha[i]) * code[i] + alpha[i] * reference[i]

**Layers** are the paper's: 1-based and inclusive, "8-18", "8-", "-7", "4-7,9". **Rows** are 0-based
array indices: a number, a slice, or a sequence. Layer 8 is row 7.
"""

from __future__ import annotations

import copy
import operator
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError

Codes = npt.NDArray[np.float32]

DEFAULT_LAYERS = "8-"  # of random styles: the paper's for its 1024-pixel models; an engine may have its own
_RANGE = re.compile(r"\s*(?:(\d{1,4})\s*(-)?\s*(\d{1,4})?|(-)\s*(\d{1,4}))\s*")


class StyleMix:
    """Move some rows of a code towards a reference.

    Example:
        >>> StyleMix(translator.encode("friend.png"), layers="8-", alpha=0.5)
        StyleMix(a reference, layers='8-', alpha=0.5)

    Args:
        reference: A style w [D], a code [L, D], or several of them, [K, L, D] or [K, 1, D]: then each
            picture gives K results. Two dimensions are always one code.
        layers: The paper's layers, "8-18". Without layers and rows, all rows move.
        rows: Rows as NumPy indexes them: 3, slice(7, None), [0, 1, 2]. Not both.
        alpha: How far: 0 leaves the code, 1 gives the reference. One number, or one for each moved row.
    """

    def __init__(
        self,
        reference: npt.ArrayLike,
        *,
        layers: str | None = None,
        rows: Any = None,
        alpha: float | Sequence[float] = 1.0,
    ) -> None:
        if isinstance(reference, (str, os.PathLike)) or hasattr(reference, "getbands"):  # a path, a PIL image
            raise InputError("the reference is a picture; its code is translator.encode(picture)")
        self.reference: Codes | None = check_codes(reference, "the reference")
        self.seeds: tuple[int, ...] | None = None
        self.several = self.reference.ndim == 3
        self._set(layers, rows, alpha)

    @classmethod
    def random(
        cls,
        seeds: int | Sequence[int],
        *,
        layers: str | None = None,
        alpha: float | Sequence[float] = 1.0,
    ) -> StyleMix:
        """Move rows towards random styles; a sequence of K seeds gives K results for each picture.

        Args:
            seeds: The same seed always gives the same style.
            layers: The paper's layers; by default those that the engine names for random styles, else "8-".
            alpha: As for `StyleMix`.
        """
        style = cls.__new__(cls)
        style.several = not isinstance(seeds, (int, np.integer))
        style.seeds = tuple(check_seed(seed) for seed in (seeds if style.several else [seeds]))  # type: ignore[union-attr]
        style.reference = None
        if not style.seeds:
            raise InputError("there are no seeds; pass at least one, such as StyleMix.random([1, 2, 3])")
        style._set(layers, None, alpha)
        style.default_layers = layers is None
        return style

    def _set(self, layers: str | None, rows: Any, alpha: float | Sequence[float]) -> None:
        if layers is not None and rows is not None:
            raise InputError("both layers and rows are given; pass one of them")
        if layers is not None:
            layer_ranges(layers)
        self.layers, self.rows, self.default_layers = layers, rows, False
        self.alpha = _floats(alpha)
        if self.alpha.ndim > 1 or not np.isfinite(self.alpha).all():
            raise InputError(f"alpha is {alpha!r}; expected a number, or one for each moved row")

    def __repr__(self) -> str:
        what = "a reference" if self.seeds is None else f"seeds {list(self.seeds)}"
        where = f"layers={self.layers!r}" if self.layers or self.default_layers else f"rows={self.rows!r}"
        return f"StyleMix({what}, {where}, alpha={self.alpha.tolist()})"

    def references(
        self, num_styles: int, style_dim: int, map_seeds: Callable[[Sequence[int]], Codes]
    ) -> Codes:
        """Return the references as codes [K, L, D]; ``map_seeds`` gives the styles [K, D] of seeds."""
        if self.reference is None:
            given = map_seeds(self.seeds or ())[:, None, :]
        else:
            given = self.reference if self.several else self.reference[None]
            given = given[:, None, :] if given.ndim == 2 else given
        if given.shape[1] not in (1, num_styles) or given.shape[2] != style_dim:
            shape = list(self.reference.shape) if self.reference is not None else list(given.shape)
            raise InputError(
                f"the reference has shape {shape}; expected [{style_dim}], [{num_styles}, {style_dim}] "
                f"or [K, {num_styles}, {style_dim}]"
            )
        return np.broadcast_to(given, (len(given), num_styles, style_dim))

    def with_references(self, references: Codes) -> StyleMix:
        """Return the same mix towards codes [K, L, D] that are known already."""
        style = copy.copy(self)
        style.reference = references if self.several else references[0]
        style.seeds = None
        return style

    def weights(self, num_styles: int, default_layers: str = DEFAULT_LAYERS) -> Codes:
        """Return how far each row moves, [L]; ``default_layers`` are for random styles without layers."""
        layers = default_layers if self.default_layers else self.layers
        rows = layer_rows(layers, num_styles) if layers is not None else _chosen(self.rows, num_styles)
        if self.alpha.ndim == 1 and len(self.alpha) != len(rows):
            raise InputError(
                f"alpha has {len(self.alpha)} values for {len(rows)} moved rows; expected one for each"
            )
        weights = np.zeros(num_styles, np.float32)
        weights[rows] = self.alpha
        return weights


def layer_rows(layers: str, num_styles: int) -> list[int]:
    """Return the rows of the paper's layers.

    Example:
        >>> layer_rows("1-3,9", 18)
        [0, 1, 2, 8]
    """
    rows: list[int] = []
    for first, last in layer_ranges(layers):
        upto = num_styles if last is None else last
        if max(first, upto) > num_styles:
            raise InputError(
                f"layers {layers!r} go beyond this model's {num_styles} layers; expected 1-{num_styles}"
            )
        rows += range(first - 1, upto)
    return sorted(set(rows))


def check_seed(seed: Any) -> int:
    """Return a seed as an int."""
    try:
        value = operator.index(seed)
    except TypeError:
        value = -1
    if value < 0:
        raise InputError(f"the seed is {seed!r}; expected a whole number from 0 up")
    return value


def check_codes(codes: npt.ArrayLike, what: str) -> Codes:
    """Return finite numbers of 1 to 3 dimensions as float32, in memory of their own order."""
    array = codes if isinstance(codes, np.ndarray) else _floats(codes)
    if array.dtype.kind != "f":
        raise InputError(f"{what} has dtype {array.dtype}; expected float32, as encode() and sample() give")
    if not 1 <= array.ndim <= 3 or 0 in array.shape:
        raise InputError(f"{what} has shape {list(array.shape)}; expected [L, D] or [N, L, D]")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        found = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(found).all():
        raise InputError(f"{what} holds NaN, infinity or no numbers; expected finite float32")
    return found


def _floats(values: Any) -> Codes:
    """Return numbers as an array; what is not numbers becomes NaN, which every caller refuses."""
    try:
        return np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError):
        return np.full(1, np.nan, np.float32)


def layer_ranges(layers: Any) -> list[tuple[int, int | None]]:
    """Return the first and last layer of each part, the last None where it is left open."""
    ranges: list[tuple[int, int | None]] = []
    for part in layers.split(",") if isinstance(layers, str) else [""]:
        match = _RANGE.fullmatch(part)
        first, dash, last, _, upto = match.groups() if match else (None,) * 5
        low = int(first or 1)
        high = int(upto or last or low) if upto or last or not dash else None
        if match is None or (last and not dash) or low < 1 or (high is not None and high < low):
            raise InputError(
                f"layers is {layers!r}; expected the paper's layers, such as '8-18', '8-', '-7' or '4-7,9'"
            )
        ranges.append((low, high))
    return ranges


def _chosen(rows: Any, num_styles: int) -> npt.NDArray[np.intp]:
    every = np.arange(num_styles)
    if rows is None:
        return every
    try:
        return np.atleast_1d(every[rows if isinstance(rows, slice) else np.asarray(rows)])
    except (IndexError, TypeError) as error:
        raise InputError(
            f"rows is {rows!r}; expected row numbers from 0 to {num_styles - 1} ({error})"
        ) from None
