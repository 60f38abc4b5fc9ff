"""What is done to each frame: find its faces, align them, translate them, and paste them back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image

from ..faces import crop, paste
from ..images import Pixels
from ..style import Codes, StyleMix
from .frames import Colors, FaceFrame, FilmFrame, beside, region_of, timed_like, with_region
from .track import Tracker

if TYPE_CHECKING:
    from ..translator import Translator
    from ..truncation import Truncation


AnyFrame = TypeVar("AnyFrame", bound=FaceFrame)


class FindFaces:
    """Follow the faces of a film."""

    def __init__(self, tracker: Tracker, colors: Colors) -> None:
        self._tracker, self._colors = tracker, colors

    def __call__(self, frame: FilmFrame) -> FilmFrame:
        """Add the faces of a frame."""
        frame.rgb = self._colors.to_rgb(frame.picture)
        frame.faces = self._tracker.follow(frame.rgb, frame.seconds)
        return frame


class CutFaces:
    """Cut and align the faces."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __call__(self, frame: AnyFrame) -> AnyFrame:
        """Add the aligned crops of a frame."""
        for tracked in frame.faces:
            assert frame.rgb is not None
            pixels, face, _ = region_of(frame.rgb, tracked.face)
            frame.crops.append(np.asarray(crop(pixels, face, self._size)))
        return frame


class WholeFrame:
    """Give the model each frame as it is."""

    def __init__(self, colors: Colors) -> None:
        self._colors = colors

    def __call__(self, frame: FilmFrame) -> FilmFrame:
        """Add the frame itself as the only crop."""
        frame.crops = [self._colors.to_rgb(frame.picture)]
        return frame


class Styles:
    """Which style each person gets: one for all, or one after the other.

    Args:
        translator: Maps the seeds.
        styles: None, or one for each person; further persons begin again with the first.
    """

    def __init__(self, translator: Translator, styles: list[StyleMix]) -> None:
        manifest = translator.manifest
        self._rows = manifest.num_styles
        self._mixes: list[tuple[Codes, Codes]] = []  # reference [L, D] and weights [L, 1]
        for style in styles:
            weights = np.asarray(style.weights(self._rows, manifest.style_layers), np.float32)
            shape = (self._rows, manifest.style_dim)
            reference = style.references(*shape, lambda seeds: translator.sample(seeds)[:, 0])
            self._mixes.append((reference[0], weights.reshape(self._rows, 1)))

    def mixed(self, codes: Codes, persons: list[int]) -> Codes:
        """Return codes [N, L, D] with the style of each person in them."""
        if not self._mixes:
            return codes
        mixed = codes.copy()
        for row, person in enumerate(persons):
            reference, weights = self._mixes[person % len(self._mixes)]
            mixed[row] = (1 - weights) * codes[row] + weights * reference
        return mixed


class SteadyCodes:
    """The codes of each person as an exponential average over time.

    Args:
        half_life: Seconds after which a code counts half; 0 leaves codes as they are.
    """

    def __init__(self, half_life: float) -> None:
        self._half_life = half_life
        self._kept: dict[tuple[int, int], tuple[float, Codes]] = {}  # time and code of a person in a shot

    def averaged(self, codes: Codes, keys: list[tuple[int, int]], seconds: float) -> Codes:
        """Return codes [N, L, D], averaged with those of the same keys in earlier frames."""
        if not self._half_life:
            return codes
        averages = codes.copy()
        for row, key in enumerate(keys):
            if key in self._kept:
                before, code = self._kept[key]
                kept = 0.5 ** ((seconds - before) / self._half_life)
                averages[row] = kept * code + (1 - kept) * codes[row]
        self._kept = {key: (seconds, averages[row]) for row, key in enumerate(keys)}
        return averages


class Translate:
    """Run the model on all crops of a frame as one batch."""

    def __init__(
        self,
        translator: Translator,
        styles: Styles,
        truncation: Truncation | None,
        steady: SteadyCodes,
    ) -> None:
        self._translator, self._styles = translator, styles
        self._truncation, self._steady = truncation, steady

    def __call__(self, frame: AnyFrame) -> AnyFrame:
        """Add the results of a frame."""
        if not frame.crops:
            return frame
        pictures = [Image.fromarray(pixels) for pixels in frame.crops]
        keys = [(tracked.shot, tracked.person) for tracked in frame.faces] or [(0, 0)]
        codes = self._steady.averaged(self._translator.encode(pictures), keys, frame.seconds)
        codes = self._styles.mixed(codes, [person for _, person in keys])
        frame.results = self._rgb(self._translator.generate(codes, truncation=self._truncation))
        return frame

    def _rgb(self, pixels: Pixels) -> Pixels:
        return pixels if self._translator.color == "rgb" else np.ascontiguousarray(pixels[..., ::-1])


class PasteFaces:
    """Put the results back into the frame; frames without a face stay as they are."""

    def __init__(self, colors: Colors, *, side_by_side: bool) -> None:
        self._colors, self._side_by_side = colors, side_by_side

    def __call__(self, frame: FilmFrame) -> FilmFrame:
        """Change the picture of a frame."""
        original = frame.picture
        for before, after, (left, top) in pasted_regions(frame):
            frame.picture = with_region(frame.picture, before, after, left, top, self._colors)
        if self._side_by_side:
            frame.picture = beside(original, frame.picture)
        frame.rgb, frame.crops, frame.results = None, [], None  # what waits to be written needs no more
        return frame


class ReplaceFrame:
    """Make the model's result the frame."""

    def __init__(self, colors: Colors, *, side_by_side: bool) -> None:
        self._colors, self._side_by_side = colors, side_by_side

    def __call__(self, frame: FilmFrame) -> FilmFrame:
        """Change the picture of a frame."""
        assert frame.results is not None
        result = frame.results[0]
        if self._side_by_side:
            result = np.concatenate(_same_height(frame.crops[0], result), axis=1)
        even = np.pad(result, ((0, result.shape[0] % 2), (0, result.shape[1] % 2), (0, 0)), mode="edge")
        frame.picture = timed_like(self._colors.from_rgb(even), frame.picture)
        frame.crops, frame.results = [], None
        return frame


def pasted_regions(frame: FaceFrame) -> Iterator[tuple[Pixels, Pixels, tuple[int, int]]]:
    """Paste the results into a frame's RGB, and yield each region before and after, and where it lies.

    The largest comes last, so that the nearest face is on top. The frame's array must be its own.
    """
    results = [] if frame.results is None else list(frame.results)
    pairs = zip(frame.faces, results, strict=True)
    for tracked, result in sorted(pairs, key=lambda pair: pair[0].face.side):
        assert frame.rgb is not None
        before, face, (left, top) = region_of(frame.rgb, tracked.face)
        before = before.copy()
        after = np.asarray(paste(before, face, result))
        frame.rgb[top : top + after.shape[0], left : left + after.shape[1]] = after
        yield before, after, (left, top)


def _same_height(left: Pixels, right: Pixels) -> list[Pixels]:
    """Scale the smaller picture to the height of the other one."""
    height = max(left.shape[0], right.shape[0])
    scaled = []
    for pixels in (left, right):
        width = max(1, round(pixels.shape[1] * height / pixels.shape[0]))
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        scaled.append(np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC)))
    return scaled
