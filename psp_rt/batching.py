"""Prepare styles and batches for a backend: map seeds, mix references, split by the largest batch.

N is the batch, K the number of styles, L ``num_styles`` and D ``style_dim`` of the manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .backends.backend import Backend, GpuRequest, Styles, in_parts
from .engine.manifest import Manifest
from .errors import InputError
from .images import Pixels
from .style import Codes, StyleMix, check_codes
from .truncation import Truncation, strengths, truncate, truncated_mix

AVERAGED = 1024  # seeds, for the average style of an engine that does not store it


@dataclass(frozen=True, kw_only=True)
class _Remembered:
    """The style of the last call and its result; copies tell whether the caller changed its arrays."""

    style: StyleMix | None
    truncation: Truncation | None
    reference: Codes | None
    alpha: Codes
    styles: Styles

    def is_for(self, style: StyleMix | None, truncation: Truncation | None) -> bool:
        """Return whether a style and its truncation are these, unchanged."""
        if style is not self.style or truncation != self.truncation:
            return False
        if style is None:
            return True
        if not np.array_equal(style.alpha, self.alpha):
            return False
        if style.reference is None or self.reference is None:  # of seeds, which cannot change
            return True
        return np.array_equal(style.reference, self.reference)


class StyledBatches:
    """Passes one model's batches and styles to a backend. The caller holds the backend's lock."""

    def __init__(self, manifest: Manifest, max_batch: int, *, average: Codes | None = None) -> None:
        """Check that ``max_batch``, how many pictures to encode or generate at once, is 1 or more.

        ``average`` is the average style [D], if the engine stores it.
        """
        if not isinstance(max_batch, int) or max_batch < 1:
            raise InputError(f"max_batch is {max_batch!r}; expected 1 or more")
        self._manifest, self._max_batch, self._average = manifest, max_batch, average
        rows = manifest.num_styles
        self._no_style = Styles(
            reference=np.zeros((1, rows, manifest.style_dim), np.float32),
            weights=np.zeros((1, rows), np.float32),
        )
        self._remembered: _Remembered | None = None

    def map_seeds(self, backend: Backend, seeds: Sequence[int]) -> Codes:
        """Return the styles w [N, D] of seeds."""
        size = self._manifest.style_dim
        z = [np.random.default_rng(seed).standard_normal(size, dtype=np.float32) for seed in seeds]
        return backend.map(np.stack(z))

    def average(self, backend: Backend) -> Codes:
        """Return the average style as a code [L, D]."""
        if self._average is None:
            styles = self.map_seeds(backend, range(AVERAGED))
            self._average = styles.mean(axis=0, dtype=np.float64).astype(np.float32)
        return np.repeat(self._average[None], self._manifest.num_styles, axis=0)

    def sample(self, backend: Backend, seeds: Sequence[int], truncation: Truncation | None) -> Codes:
        """Return the codes [N, L, D] of random styles."""
        rows = self._manifest.num_styles
        psi = None if truncation is None else strengths(truncation, rows)
        codes = np.repeat(self.map_seeds(backend, seeds)[:, None], rows, axis=1)
        return codes if psi is None else truncate(codes, self.average(backend), psi)

    def encode(self, backend: Backend, pixels: Pixels) -> Codes:
        """Return the codes [N, L, D] of images [N, H, W, C]."""
        return in_parts(self._max_batch, backend.encode, pixels)

    def translate(
        self,
        backend: Backend,
        pixels: Pixels,
        style: StyleMix | None,
        truncation: Truncation | None,
        see: Callable[[Codes], object],
    ) -> Pixels:
        """Return pictures [N, H, W, 3], or [N, K, H, W, 3] for several styles, of images [N, H, W, C]."""
        styles = self.styles(backend, style, truncation)
        results = backend.translate(pixels, styles, max_batch=self._max_batch, see=see)
        return _by_picture(results, styles, style)

    def translate_on_gpu(
        self,
        backend: Backend,
        images: Any,
        style: StyleMix | None,
        truncation: Truncation | None,
        *,
        out: Any,
        stream: Any,
    ) -> Any:
        """Return the result of pictures in GPU memory, as `psp_rt.Translator.run` describes it."""
        request = GpuRequest(
            images=images,
            styles=self.styles(backend, style, truncation),
            has_style_axis=_has_style_axis(style),
            max_batch=self._max_batch,
            out=out,
            stream=stream,
        )
        return backend.translate_on_gpu(request)

    def generate(
        self,
        backend: Backend,
        codes: npt.ArrayLike,
        style: StyleMix | None,
        truncation: Truncation | None,
    ) -> Pixels:
        """Return pictures [..., H, W, 3], or [..., K, H, W, 3] for several styles, of codes [..., L, D].

        Raises:
            InputError: The codes have another shape than [L, D] or [N, L, D].
        """
        given, rows = check_codes(codes, "the code"), (self._manifest.num_styles, self._manifest.style_dim)
        if given.ndim < 2 or given.shape[-2:] != rows:
            raise InputError(
                f"codes must be {list(rows)} or [N, {rows[0]}, {rows[1]}], got {list(given.shape)}"
            )
        styles = self.styles(backend, style, truncation)
        mixed = styles.mixed_into(given.reshape(-1, *rows))
        pictures = _by_picture(in_parts(self._max_batch, backend.generate, *mixed), styles, style)
        return pictures[0] if given.ndim == 2 else pictures

    def styles(self, backend: Backend, style: StyleMix | None, truncation: Truncation | None) -> Styles:
        """Return what to mix in, with its seeds mapped; the same object as before for the same arguments.

        Raises:
            InputError: It is not a StyleMix, or goes beyond the model.
        """
        if style is None and truncation is None:
            return self._no_style
        if not isinstance(style, StyleMix | None):
            raise InputError(f"style is {style!r:.60}; expected a StyleMix, such as StyleMix.random([1, 2])")
        remembered = self._remembered
        if remembered is not None and remembered.is_for(style, truncation):
            return remembered.styles
        # What is beyond the model is refused before any work.
        rows = (self._manifest.num_styles, self._manifest.style_dim)
        psi = None if truncation is None else strengths(truncation, rows[0])
        styles = self._no_style
        if style is not None:
            weights = style.weights(rows[0], self._manifest.style_layers)
            reference = style.references(*rows, lambda seeds: self.map_seeds(backend, seeds))
            styles = Styles(reference=np.array(reference), weights=np.tile(weights, (len(reference), 1)))
        if psi is not None:
            mixed = truncated_mix(styles.reference, styles.weights, self.average(backend), psi)
            styles = Styles(reference=mixed[0], weights=mixed[1])

        given = None if style is None else style.reference
        self._remembered = _Remembered(
            style=style,
            truncation=truncation,
            reference=None if given is None else given.copy(),
            alpha=np.zeros(0, np.float32) if style is None else style.alpha.copy(),
            styles=styles,
        )
        return styles


def _has_style_axis(style: StyleMix | None) -> bool:
    return style is not None and style.several


def _by_picture(results: Pixels, styles: Styles, style: StyleMix | None) -> Pixels:
    """Return results [N * K, H, W, 3] as [N, K, H, W, 3] if several styles were asked for."""
    return results.reshape(-1, len(styles), *results.shape[1:]) if _has_style_axis(style) else results
