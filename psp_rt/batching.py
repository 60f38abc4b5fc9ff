"""Batches of any size and styles of any number, as a backend takes them: mapped, mixed, and in parts.

N is the batch, K the number of styles, L ``num_styles`` and D ``style_dim`` of the manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from .backends import Backend
from .backends.parts import in_parts
from .cuda.gpu_call import GpuRequest
from .engine.manifest import Manifest
from .errors import InputError
from .images import Pixels
from .streaming import AtWork
from .style import Codes, StyleMix, check_codes


@dataclass(frozen=True, kw_only=True)
class StyledBatches:
    """How one model's batches and styles reach a backend, whose turn the caller has."""

    manifest: Manifest
    max_batch: int  # what is encoded or generated at once

    def __post_init__(self) -> None:
        """Refuse a batch that is none."""
        if not isinstance(self.max_batch, int) or self.max_batch < 1:
            raise InputError(f"max_batch is {self.max_batch!r}; expected 1 or more")

    def map_seeds(self, backend: Backend, seeds: Sequence[int]) -> Codes:
        """Return the styles w [N, D] of seeds."""
        size = self.manifest.style_dim
        z = [np.random.default_rng(seed).standard_normal(size, dtype=np.float32) for seed in seeds]
        return backend.map(np.stack(z))

    def settled(self, backend: Backend, style: StyleMix | None) -> StyleMix | None:
        """Return a style that fits this model, its seeds mapped.

        Raises:
            InputError: It is none, or goes beyond the model.
        """
        if style is None:
            return None
        if not isinstance(style, StyleMix):
            raise InputError(f"style is {style!r:.60}; expected a StyleMix, such as StyleMix.random([1, 2])")
        style.weights(self.manifest.num_styles)  # layers beyond the model are refused before any work
        return style.with_references(self._references(backend, style))

    def encode(self, backend: Backend, pixels: Pixels) -> Codes:
        """Return the codes [N, L, D] of images [N, H, W, C]."""
        return in_parts(self.max_batch, backend.encode, pixels)

    def translate(self, backend: Backend, pixels: Pixels, style: StyleMix | None) -> Pixels:
        """Return pictures [N, H, W, 3], or [N, K, H, W, 3] for several styles, of images [N, H, W, C]."""
        reference, weights = self._mix(backend, style)
        images_at_once = self.max_batch // len(reference)
        if images_at_once:
            translate = partial(backend.translate, reference=reference, weights=weights)
            results = in_parts(images_at_once, translate, pixels)
        else:
            results = backend.translate_in_parts(pixels, reference, weights, most=self.max_batch)
        return _by_picture(results, len(reference), style)

    def begin(self, backend: Backend, pixels: Pixels, style: StyleMix | None) -> AtWork[Pixels] | None:
        """Begin what `translate` does; None where it is too much at once, or the backend does not."""
        reference, weights = self._mix(backend, style)
        if len(pixels) * len(reference) > self.max_batch:
            return None
        begun = backend.begin(pixels, reference, weights)
        if begun is None:
            return None
        return AtWork(
            finish=lambda: _by_picture(begun.finish(), len(reference), style), abandon=begun.abandon
        )

    def translate_on_gpu(
        self, backend: Backend, images: Any, style: StyleMix | None, *, out: Any, stream: Any
    ) -> Any:
        """Return the result of arrays on the GPU, as :meth:`psp_rt.Translator.run` describes it."""
        reference, weights = self._mix(backend, style)
        request = GpuRequest(
            images=images,
            out=out,
            stream=stream,
            reference=reference,
            weights=weights,
            several=_several(style),
            max_batch=self.max_batch,
        )
        return backend.translate_on_gpu(request)

    def generate(self, backend: Backend, codes: npt.ArrayLike, style: StyleMix | None) -> Pixels:
        """Return pictures [..., H, W, 3], or [..., K, H, W, 3] for several styles, of codes [..., L, D].

        Raises:
            InputError: The codes have another shape than [L, D] or [N, L, D].
        """
        given = self._checked(codes)
        every = given.reshape(-1, *given.shape[-2:])
        reference, weights = self._mix(backend, style)
        results = in_parts(
            self.max_batch,
            backend.generate,
            np.repeat(every, len(reference), axis=0),
            np.tile(reference, (len(every), 1, 1)),
            np.tile(weights, (len(every), 1)),
        )
        pictures = _by_picture(results, len(reference), style)
        return pictures[0] if given.ndim == 2 else pictures

    def _checked(self, codes: npt.ArrayLike) -> Codes:
        rows = (self.manifest.num_styles, self.manifest.style_dim)
        given = check_codes(codes, "the code")
        if given.ndim < 2 or given.shape[-2:] != rows:
            raise InputError(
                f"codes must be {list(rows)} or [N, {rows[0]}, {rows[1]}], got {list(given.shape)}"
            )
        return given

    def _mix(self, backend: Backend, style: StyleMix | None) -> tuple[Codes, Codes]:
        """Return the references [K, L, D] of a style, and the weights [K, L]; without one, K is 1."""
        rows = self.manifest.num_styles
        settled = self.settled(backend, style)
        if settled is None:
            return np.zeros((1, rows, self.manifest.style_dim), np.float32), np.zeros((1, rows), np.float32)
        references = self._references(backend, settled)
        return references, np.tile(settled.weights(rows), (len(references), 1))

    def _references(self, backend: Backend, style: StyleMix) -> Codes:
        rows = (self.manifest.num_styles, self.manifest.style_dim)
        return style.references(*rows, lambda seeds: self.map_seeds(backend, seeds))


def _several(style: StyleMix | None) -> bool:
    """Return whether results have an axis for the styles."""
    return style is not None and style.several


def _by_picture(results: Pixels, styles: int, style: StyleMix | None) -> Pixels:
    """Return results [N * K, H, W, 3] as [N, K, H, W, 3] where several styles were asked for."""
    return results.reshape(-1, styles, *results.shape[1:]) if _several(style) else results
