"""Do plans compute what the portable graphs of their engine do?

Control flow is tested with stand-ins for both sides; no plan has run on a GPU yet.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backends import Backend
from ..engine.manifest import Manifest
from ..errors import BackendError

PARITY_BAR = 40.0  # dB, of the plans' results against those of the portable graphs


def compare(portable: Backend, plans: Backend, manifest: Manifest) -> dict[str, float]:
    """Run plans and portable graphs on drawn inputs and return how close they are; closes both.

    Raises:
        BackendError: The plans compute something else.
    """
    try:
        z = np.random.default_rng(0).standard_normal((2, manifest.style_dim), dtype=np.float32)
        styles = portable.map(z)
        figures = {"styles_psnr_db": _psnr_db(plans.map(z), styles)}
        codes = np.repeat(styles[:, None], manifest.num_styles, axis=1)
        if manifest.input is not None:
            spec = manifest.input
            shape = (2, spec.height, spec.width, spec.channels)
            images = np.random.default_rng(0).integers(0, spec.labels or 256, shape, dtype=np.uint8)
            codes = portable.encode(images)
            figures["codes_psnr_db"] = _psnr_db(plans.encode(images), codes)
        if manifest.noise != "random":  # each side draws its own, and no two pictures are alike
            weights = np.zeros(codes.shape[:2], np.float32)
            expected = portable.generate(codes, codes, weights)
            figures["picture_psnr_db"] = _psnr_db(plans.generate(codes, codes, weights), expected)
    finally:
        portable.close()
        plans.close()
    for name, figure in figures.items():
        if not figure >= PARITY_BAR:
            raise BackendError(
                f"the plans do not compute what the graphs do: {name} is {figure:.3g}, expected at least "
                f"{PARITY_BAR:g}. Nothing was written"
            )
    return figures


def _psnr_db(found: Any, expected: Any) -> float:
    """Return the peak signal-to-noise ratio, relative to the range of what was expected; 99 if equal."""
    reach = 255.0 if expected.dtype == np.uint8 else max(float(np.ptp(expected)), 1e-12)
    error = float(np.square(found.astype(np.float64) - expected.astype(np.float64)).mean()) / reach**2
    return 99.0 if error < 1e-10 else float(-10 * np.log10(error))
