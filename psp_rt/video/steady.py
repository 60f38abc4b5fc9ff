"""What keeps a film calm: a filter for landmarks, and a test for cuts, at which it begins anew."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..faces.face import Face, Points
from ..images import Pixels

MIN_CUTOFF = 0.6  # Hz, for a still face: lower is calmer
SPEED_CUTOFF = 20.0  # Hz more for each side of the face that it moves in a second: higher follows faster
DERIVATIVE_CUTOFF = 1.0  # Hz, for the speed itself

CUT_DIFFERENCE = 0.4  # part of the pixels that change color
CUT_CONTRAST = 4.0  # times the change that is usual in this shot
USUAL_KEPT = 0.9  # of the usual change, from frame to frame
BINS, GRID = 6, 64  # levels of each channel; about as many rows and columns of the frame are looked at


class OneEuro:
    """The One-Euro filter (Casiez et al., CHI 2012) for the landmarks of one face.

    A face that stays is smoothed much, one that moves little, so that it does not lag. One cutoff for all
    landmarks keeps the face's shape.
    """

    def __init__(self) -> None:
        self._value: Points | None = None
        self._speed: Points | None = None
        self._seconds = 0.0

    def __call__(self, face: Face, seconds: float) -> Face:
        """Return the next face of a film, smoothed."""
        value, elapsed = face.landmarks, seconds - self._seconds
        self._seconds = seconds
        if self._value is None or self._speed is None or elapsed <= 0:
            self._value, self._speed = value, np.zeros((3, 2))
            return face
        anchors = np.concatenate([face.eyes, face.mouth[None]])
        moved = (anchors - self._anchors(face.score)) / elapsed / face.side  # [3, 2], sides a second
        self._speed = self._speed + _weight(DERIVATIVE_CUTOFF, elapsed) * (moved - self._speed)
        speed = float(np.hypot(*self._speed.T).max())
        self._value = self._value + _weight(MIN_CUTOFF + SPEED_CUTOFF * speed, elapsed) * (
            value - self._value
        )
        return Face(self._value, face.score)

    def _anchors(self, score: float) -> Points:
        assert self._value is not None
        before = Face(self._value, score)
        return np.concatenate([before.eyes, before.mouth[None]])


class Cuts:
    """Tells a new shot by the colors of its frames.

    The histogram of a frame is compared with that of the frame before. A cut changes more than movement
    does, and much more than is usual in the shot; a flash or a fade may pass for one, which only makes the
    faces be found anew.
    """

    def __init__(self) -> None:
        self._before: npt.NDArray[np.float64] | None = None
        self._usual = 0.0

    def is_cut(self, pixels: Pixels) -> bool:
        """Return whether a frame, RGB [H, W, 3], begins a new shot; the first one does not."""
        step = max(1, min(pixels.shape[:2]) // GRID)
        levels = pixels[::step, ::step].astype(np.int64) * BINS // 256
        bins = (levels[..., 0] * BINS + levels[..., 1]) * BINS + levels[..., 2]
        histogram = np.bincount(bins.ravel(), minlength=BINS**3) / bins.size
        before, self._before = self._before, histogram
        if before is None:
            return False
        difference = float(np.abs(histogram - before).sum()) / 2
        if difference > max(CUT_DIFFERENCE, CUT_CONTRAST * self._usual):
            self._usual = 0.0
            return True
        self._usual = USUAL_KEPT * self._usual + (1 - USUAL_KEPT) * difference
        return False


def _weight(cutoff: float, elapsed: float) -> float:
    """Return the weight of a new value in a low-pass filter."""
    return 1 / (1 + 1 / (2 * math.pi * cutoff * elapsed))
