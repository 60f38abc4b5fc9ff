"""How work is split where it does not fit at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Scalar = TypeVar("Scalar", bound=np.generic)


def in_parts(
    most: int, graph: Callable[..., npt.NDArray[Scalar]], *inputs: npt.NDArray[Any]
) -> npt.NDArray[Scalar]:
    """Run a graph on a batch, in parts of at most ``most``."""
    starts = range(0, len(inputs[0]), most)
    parts = [graph(*(np.ascontiguousarray(part[at : at + most]) for part in inputs)) for at in starts]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def style_parts(images: int, styles: int, most: int) -> Iterator[tuple[int, slice]]:
    """Yield an image and at most ``most`` of its styles, until each image has had all.

    All images take the same styles before the next ones come: on a GPU each change of styles waits until
    those before have been read.
    """
    for at in range(0, styles, most):
        for image in range(images):
            yield image, slice(at, min(at + most, styles))
