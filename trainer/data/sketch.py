"""Sketches as training inputs: drawn from photos by `psp_rt.pencil`, and no two scans of them alike."""

import cv2
import numpy as np

from psp_rt.pencil import Gray, Pencil, draw

__all__ = ["Gray", "Pencil", "draw", "vary"]


def vary(drawing: Gray, rng: np.random.Generator) -> Gray:
    """Move a drawing [h, w], pale it and erase part of it, as no two scans are alike."""
    height, width = drawing.shape
    middle = (width / 2, height / 2)
    turn = np.asarray(cv2.getRotationMatrix2D(middle, rng.normal(0, 1.5), 1 + rng.normal(0, 0.015)), float)
    turn[:, 2] += rng.normal(0, 0.01 * width, 2)
    moved = cv2.warpAffine(np.ascontiguousarray(drawing), turn, (width, height), borderValue=255)
    paled = 255 - (255 - moved.astype(np.float32)) * rng.uniform(0.6, 1.2)
    if rng.random() < 0.15:
        tall, wide = rng.integers(height // 16, height // 4), rng.integers(width // 16, width // 4)
        top, left = rng.integers(height - tall), rng.integers(width - wide)
        paled[top : top + tall, left : left + wide] = 255
    varied: Gray = np.clip(paled, 0, 255).astype(np.uint8)
    return varied
