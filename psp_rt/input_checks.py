"""Say when a result cannot be good: `InputWarning` for pictures and codes that a model was not made for.

Only sizes and codes are looked at, which are at hand anyway, so that a frame of a video pays nothing.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from .engine.manifest import InputSpec, Manifest
from .engine.statistics import Statistics
from .errors import InputWarning
from .style import Codes

MAX_SQUEEZE = 0.10  # of the width or the height
MAX_UPSCALE = 4.0  # times
_collector: ContextVar[list[InputWarning] | None] = ContextVar("collector", default=None)
_PACKAGE = str(Path(__file__).parent)


def check_sizes(sizes: Sequence[tuple[int, int]], manifest: Manifest) -> None:
    """Warn of pictures, sizes as (height, width), that the encoder sees squeezed or much enlarged."""
    spec = manifest.input
    if spec is None:
        return
    for number, (height, width) in enumerate(sizes):
        name = "the picture" if len(sizes) == 1 else f"picture {number} of the batch"
        size, wanted = f"{width} x {height} pixels", f"{spec.width} x {spec.height}"
        along_x, along_y = spec.width / width, spec.height / height
        squeeze = 1 - min(along_x, along_y) / max(along_x, along_y)
        if squeeze > MAX_SQUEEZE:
            what = "width" if along_x < along_y else "height"
            hint = ", or cut a face with run_faces() or --faces largest" if manifest.expects_faces else ""
            _warn(
                f"{name}, {size}, is squeezed by {squeeze:.0%} in {what} to {wanted}: crop it first{hint}",
                *("squeezed", squeeze, MAX_SQUEEZE),
            )
        _check_upscale(max(along_x, along_y), f"{name}, {size},", wanted, manifest)


def check_faces(sides: Iterable[float], manifest: Manifest) -> None:
    """Warn of faces, cut as squares of these sides in pixels, that the encoder sees much enlarged."""
    spec = manifest.input
    for side in sides if spec is not None else ():
        assert isinstance(spec, InputSpec)
        scale = max(spec.width, spec.height) / max(side, 1)
        _check_upscale(scale, f"a face of {side:.0f} pixels", f"{spec.width} x {spec.height}", manifest)


def check_codes(
    codes: Codes, manifest: Manifest, statistics: Statistics | None, *, from_bgr: bool = False
) -> None:
    """Warn of codes [N, L, D] that lie far from those of the pictures that the model is for.

    The most common reason in programs is the order of an array's channels: faces become blue.
    """
    hint = "; arrays are read as BGR: open the engine with color='rgb' if these are RGB" if from_bgr else ""
    limit = manifest.strange_above
    if limit is None or statistics is None:
        return
    for number, distance in enumerate(statistics.distance(codes).tolist()):
        if distance > limit:
            name = "the picture" if len(codes) == 1 else f"picture {number} of the batch"
            _warn(
                f"{name} is unlike those that this model was made for: its code lies {distance:.2f} spreads "
                f"from usual ones, expected at most {limit:.2f}; the result may be poor{hint}",
                *("strange", distance, limit),
            )


def _check_upscale(scale: float, what: str, wanted: str, manifest: Manifest) -> None:
    # Low resolution is what models for super-resolution are made for.
    if scale > MAX_UPSCALE and manifest.task != "super-resolution":
        _warn(
            f"{what} is enlarged {scale:.1f} times to {wanted}; the result will be vague: use a larger one",
            *("upscaled", scale, MAX_UPSCALE),
        )


@contextmanager
def collected() -> Iterator[list[InputWarning]]:
    """Collect the warnings of this thread's calls in a list, in place of issuing them.

    Python's own `warnings.catch_warnings` is not for threads: servers use this.
    """
    found: list[InputWarning] = []
    token = _collector.set(found)
    try:
        yield found
    finally:
        _collector.reset(token)


def _warn(message: str, kind: str, value: float, limit: float) -> None:
    """Issue a warning that points at the caller's own line."""
    found = _collector.get()
    if found is not None:
        found.append(InputWarning(message, kind=kind, value=value, limit=limit))
        return
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(InputWarning(message, kind=kind, value=value, limit=limit), stacklevel=level)
