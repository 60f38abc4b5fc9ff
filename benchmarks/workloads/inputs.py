"""What goes into a model, the same for every contender. Imports no PyTorch: first runs are timed, too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from psp_rt.engine import InputSpec
from psp_rt.images import Pixels, to_input
from psp_rt.style import Codes


def read(pictures: Sequence[Path], spec: InputSpec) -> Pixels:
    """Decode and resize pictures, which is the same for all contenders."""
    return np.stack([to_input(picture, spec) for picture in pictures])


def latent(seed: int, size: int) -> Codes:
    """Return z [1, size] of a seed, as psp_rt draws it."""
    return np.random.default_rng(seed).standard_normal((1, size), dtype=np.float32)
