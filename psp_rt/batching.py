"""Prepare styles and batches for a backend: map seeds, mix references, split by the largest batch.

N is the batch, K the number of styles, L ``num_styles`` and D ``style_dim`` of the manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .backends.backend import Backend, GpuRequest, Styles, in_parts
from .engine.manifest import Manifest
from .errors import InputError
from .images import Pixels
from .style import Codes, StyleMix, check_codes


@dataclass(frozen=True, kw_only=True)
class _Remembered:
    """The style of the last call and its result; copies tell whether the caller changed its arrays."""

    style: StyleMix
    reference: Codes | None
    alpha: Codes
    styles: Styles

    def is_for(self, style: StyleMix) -> bool:
        """Return whether a style is this one, unchanged."""
        if style is not self.style or not np.array_equal(style.alpha, self.alpha):
            return False
        if style.reference is None or self.reference is None:  # of seeds, which cannot change
            return True
        return np.array_equal(style.reference, self.reference)


class StyledBatches:
    """Passes one model's batches and styles to a backend. The caller holds the backend's lock."""

    def __init__(self, manifest: Manifest, max_batch: int) -> None:
        """Check that ``max_batch``, how many pictures to encode or generate at once, is 1 or more."""
        if not isinstance(max_batch, int) or max_batch < 1:
            raise InputError(f"max_batch is {max_batch!r}; expected 1 or more")
        self._manifest, self._max_batch = manifest, max_batch
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

    def encode(self, backend: Backend, pixels: Pixels) -> Codes:
        """Return the codes [N, L, D] of images [N, H, W, C]."""
        return in_parts(self._max_batch, backend.encode, pixels)

    def translate(self, backend: Backend, pixels: Pixels, style: StyleMix | None) -> Pixels:
        """Return pictures [N, H, W, 3], or [N, K, H, W, 3] for several styles, of images [N, H, W, C]."""
        styles = self.styles(backend, style)
        return _by_picture(backend.translate(pixels, styles, max_batch=self._max_batch), styles, style)

    def translate_on_gpu(
        self, backend: Backend, images: Any, style: StyleMix | None, *, out: Any, stream: Any
    ) -> Any:
        """Return the result of pictures in GPU memory, as `psp_rt.Translator.run` describes it."""
        request = GpuRequest(
            images=images,
            styles=self.styles(backend, style),
            has_style_axis=_has_style_axis(style),
            max_batch=self._max_batch,
            out=out,
            stream=stream,
        )
        return backend.translate_on_gpu(request)

    def generate(self, backend: Backend, codes: npt.ArrayLike, style: StyleMix | None) -> Pixels:
        """Return pictures [..., H, W, 3], or [..., K, H, W, 3] for several styles, of codes [..., L, D].

        Raises:
            InputError: The codes have another shape than [L, D] or [N, L, D].
        """
        given, rows = check_codes(codes, "the code"), (self._manifest.num_styles, self._manifest.style_dim)
        if given.ndim < 2 or given.shape[-2:] != rows:
            raise InputError(
                f"codes must be {list(rows)} or [N, {rows[0]}, {rows[1]}], got {list(given.shape)}"
            )
        styles = self.styles(backend, style)
        mixed = styles.mixed_into(given.reshape(-1, *rows))
        pictures = _by_picture(in_parts(self._max_batch, backend.generate, *mixed), styles, style)
        return pictures[0] if given.ndim == 2 else pictures

    def styles(self, backend: Backend, style: StyleMix | None) -> Styles:
        """Return what to mix in, with its seeds mapped; the same object as before for the same style.

        Raises:
            InputError: It is not a StyleMix, or goes beyond the model.
        """
        if style is None:
            return self._no_style
        if not isinstance(style, StyleMix):
            raise InputError(f"style is {style!r:.60}; expected a StyleMix, such as StyleMix.random([1, 2])")
        remembered = self._remembered
        if remembered is not None and remembered.is_for(style):
            return remembered.styles
        rows = (self._manifest.num_styles, self._manifest.style_dim)
        weights = style.weights(
            rows[0], self._manifest.default_layers
        )  # layers beyond the model are refused before any work
        reference = style.references(*rows, lambda seeds: self.map_seeds(backend, seeds))
        styles = Styles(reference=np.array(reference), weights=np.tile(weights, (len(reference), 1)))
        self._remembered = _Remembered(
            style=style,
            reference=None if style.reference is None else style.reference.copy(),
            alpha=style.alpha.copy(),
            styles=styles,
        )
        return styles


def _has_style_axis(style: StyleMix | None) -> bool:
    return style is not None and style.several


def _by_picture(results: Pixels, styles: Styles, style: StyleMix | None) -> Pixels:
    """Return results [N * K, H, W, 3] as [N, K, H, W, 3] if several styles were asked for."""
    return results.reshape(-1, len(styles), *results.shape[1:]) if _has_style_axis(style) else results
