"""Which face of a frame is which person."""

from __future__ import annotations

from ..faces import Finder, Selection
from ..images import Pixels
from .frames import TrackedFace


class Tracker:
    """Follows faces from frame to frame."""

    def __init__(self, finder: Finder, *, select: Selection = "all") -> None:
        self._finder, self._select = finder, select

    def follow(self, pixels: Pixels, seconds: float) -> list[TrackedFace]:
        """Return the faces of the next frame, RGB [H, W, 3]."""
        found = self._finder.find(pixels)[: 1 if self._select == "largest" else None]
        return [TrackedFace(face, person) for person, face in enumerate(found)]
