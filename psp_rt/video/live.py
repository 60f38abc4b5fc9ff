"""The faces of one frame after another, for a program that has the frames in its own hands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..faces import Finder, Selection
from ..faces.detect import default_finder
from ..images import Pixels
from ..preparation import faces_of
from ..style import StyleMix
from .frames import FaceFrame
from .stages import CutFaces, SteadyCodes, Styles, Translate, pasted_regions
from .track import Tracker

if TYPE_CHECKING:
    from ..translator import Translator
    from ..truncation import Truncation


class LiveFaces:
    """Replaces the faces in frames, which must come in their order.

    Example:
        >>> live = psp_rt.video.LiveFaces(translator)
        >>> shown = live(frame, seconds=1.24)

    Args:
        translator: Of an engine for photos.
        faces: "all" or the "largest" of each shot.
        styles: One for each person, as for `VideoOptions`.
        truncation: As for `Translator.run`.
        smooth: Seconds after which a code counts half; see `VideoOptions`.
        finder: Another face detector.
    """

    def __init__(
        self,
        translator: Translator,
        *,
        faces: Selection = "all",
        styles: Sequence[StyleMix] = (),
        truncation: Truncation | None = None,
        smooth: float = 0.0,
        finder: Finder | None = None,
    ) -> None:
        faces_of(translator.manifest, faces)
        spec = translator.manifest.input
        assert spec is not None
        self._tracker = Tracker(finder or default_finder(), select=faces)
        self._cut = CutFaces(max(spec.height, spec.width))
        self._translate = Translate(
            translator, Styles(translator, list(styles)), truncation, SteadyCodes(smooth)
        )

    def __call__(self, pixels: Pixels, seconds: float) -> Pixels:
        """Return a frame, RGB [H, W, 3], with its faces translated.

        Args:
            pixels: The frame; it stays as it is.
            seconds: Its time.

        Returns:
            A new array; the frame itself if there is no face in it.
        """
        faces = self._tracker.follow(pixels, seconds)
        if not faces:
            return pixels
        frame = FaceFrame(seconds=seconds, rgb=pixels.copy(), faces=faces)
        for _ in pasted_regions(self._translate(self._cut(frame))):
            pass
        assert frame.rgb is not None
        return frame.rgb
