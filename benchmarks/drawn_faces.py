"""Line-drawn faces for `drawings.py`, each another one: shape, hair, glasses, beard and pose vary.

The strokes are variations of those of `models/draw.py`, so nobody's photo is behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from models.draw import IRISES, SHEET, STROKES, curve

Points = npt.NDArray[np.float64]  # [N, 2] as (x, y)
Stroke = tuple[float, Points]  # the width of the pen, and the line
Knots = tuple[float, Sequence[tuple[float, float]]]  # and the points that the line goes through

__all__ = ["SHEET", "DrawnFace", "Points", "drawn_face"]

HAIR = slice(3, 8)  # of STROKES
EYES = np.array([center for center, _ in IRISES], float)
FINE = 2  # lines are drawn this much finer, then averaged


@dataclass(frozen=True, kw_only=True)
class DrawnFace:
    """A face as strokes on a sheet of 256x256."""

    strokes: tuple[Stroke, ...]
    irises: tuple[tuple[Points, float], ...]  # center [2] and radius
    eyes: Points  # [2, 2], the left one first
    filled: bool = False  # the first stroke is the outline of an area

    def on(self, size: tuple[int, int], matrix: Points, *, pen: float = 1.0) -> Image.Image:
        """Return the ink on a sheet, mode L, 255 where it is.

        Args:
            size: Width and height of the sheet.
            matrix: From the face's 256x256 to the sheet, [3, 3], without perspective.
            pen: Factor of the width of the lines.
        """
        fine = Image.new("L", (size[0] * FINE, size[1] * FINE))
        draw = ImageDraw.Draw(fine)
        scale = float(np.hypot(matrix[0, 0], matrix[1, 0])) * FINE

        def placed(points: Points) -> Points:
            return (points @ matrix[:2, :2].T + matrix[:2, 2]) * FINE

        if self.filled:
            draw.polygon([tuple(point) for point in placed(self.strokes[0][1])], fill=255)
        for width, line in self.strokes if not self.filled else ():
            ends = np.minimum(np.linspace(0, 8, len(line)), np.linspace(8, 0, len(line))).clip(0.45, 1)
            path = placed(line)
            # A line through all points, and rounds on them: no gaps at any scale.
            draw.line(
                [tuple(point) for point in path], fill=255, width=max(1, round(width * pen * scale * 0.6))
            )
            for (x, y), press in zip(path, ends, strict=True):
                radius = max(width * pen * press * scale / 2, 0.5)
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        for center, own in self.irises:
            (x, y), radius = placed(center[None])[0], own * scale
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=235)
            draw.ellipse((x - radius * 0.1, y - radius * 0.6, x + radius * 0.4, y - radius * 0.1), fill=0)
        return fine.resize(size, Image.Resampling.BOX)

    def parts(self) -> tuple[DrawnFace, ...]:
        """Return the face in four parts, to be drawn with a pen each."""
        quarter = -(-len(self.strokes) // 4)
        cut = [self.strokes[start : start + quarter] for start in range(0, len(self.strokes), quarter)]
        return tuple(
            replace(self, strokes=strokes, irises=self.irises if number == 0 else ())
            for number, strokes in enumerate(cut)
        )

    def outline_area(self) -> DrawnFace:
        """Return the area of head and hair."""
        angle = np.linspace(0, 2 * np.pi, 60)
        middle = self.eyes.mean(0) + np.array([0, 8])
        head = middle + np.column_stack([70 * np.cos(angle), 100 * np.sin(angle)])
        return replace(self, strokes=((1.0, head),), irises=(), filled=True)

    def hatching(self, rng: np.random.Generator) -> DrawnFace:
        """Return short parallel lines in the hair and beside the jaw."""
        middle = self.eyes.mean(0)
        strokes = []
        for across, down, count in ((0, -72, 26), (-52, 58, 12), (52, 58, 12)):
            center = middle + np.array([across, down])
            spread = 55 if across == 0 else 12
            for x in np.linspace(-spread, spread, count):
                x0, y0 = center[0] + x + rng.normal(0, 1), center[1] + rng.normal(0, 3) + abs(x) * 0.25
                strokes.append((1.5, curve([(x0, y0), (x0 + 9, y0 - 14), (x0 + 16, y0 - 24)], 8)))
        return replace(self, strokes=tuple(strokes), irises=())


def drawn_face(rng: np.random.Generator) -> DrawnFace:
    """Return a random face."""
    bend = _bend(rng)
    lines: list[Knots] = [*STROKES[: HAIR.start], *_hair(rng), *STROKES[HAIR.stop :]]
    if rng.random() < 0.3:
        lines += _glasses(rng)
    if rng.random() < 0.25:
        lines += _beard(rng)
    wobble = rng.uniform(0.2, 0.9)
    strokes = []
    for width, points in lines:
        unsteady = np.array(points, float) + rng.normal(0, wobble, (len(points), 2))
        strokes.append((width, bend(curve([tuple(point) for point in unsteady]))))
    size = rng.uniform(0.85, 1.15)
    irises = tuple((bend(np.array([center], float))[0], radius * size) for center, radius in IRISES)
    return DrawnFace(strokes=tuple(strokes), irises=irises, eyes=bend(EYES))


class _bend:
    """A smooth change of the whole face: its shape, and how far it looks to the side and leans."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.width, self.height = rng.uniform(0.9, 1.1), rng.uniform(0.94, 1.06)
        self.chin, self.look, self.lean = rng.uniform(-0.1, 0.1), rng.uniform(-8, 8), rng.uniform(-0.07, 0.07)

    def __call__(self, points: Points) -> Points:
        x, y = (points - SHEET / 2).T / (SHEET / 2)
        # Features in the middle move further to the side than the outline: the face turns.
        turned = x * self.width * (1 + self.chin * y) + self.look / 128 * np.clip(1 - (x / 0.6) ** 2, 0, 1)
        tall = y * self.height
        return np.column_stack([turned - self.lean * tall, tall + self.lean * turned]) * SHEET / 2 + SHEET / 2


def _hair(rng: np.random.Generator) -> Sequence[Knots]:
    """Return the strokes of one of four kinds of hair."""
    kind = rng.integers(4)
    cap = [(66, 120), (68, 80), (90, 46), (128, 34), (166, 46), (188, 80), (190, 120)]
    if kind == 0:
        return list(STROKES[HAIR])
    if kind == 1:  # short, with a hairline
        line = [(72, 108), (84, 82), (110, 74), (128, 72), (146, 74), (172, 82), (184, 108)]
        return [
            (2.6, cap),
            (1.8, line),
            *((1.4, [(x, 74), (x + 3, 58), (x + 8, 44)]) for x in range(92, 160, 13)),
        ]
    if kind == 2:  # long, parted in the middle
        left = [(128, 40), (100, 52), (78, 84), (68, 120), (60, 160), (52, 205), (44, 240)]
        right = [(256 - x, y) for x, y in left]
        outer = [(128, 30), (88, 36), (58, 74), (46, 130), (36, 190), (24, 240)]
        return [(2.4, left), (2.4, right), (2.6, outer), (2.6, [(256 - x, y) for x, y in outer])]
    curls = [
        [(x, y), (x + 8, y - 9), (x + 16, y - 2), (x + 12, y + 6), (x + 5, y + 3)]
        for x, y in (
            (62, 92),
            (70, 70),
            (84, 52),
            (104, 42),
            (124, 38),
            (144, 44),
            (162, 56),
            (174, 76),
            (180, 96),
        )
    ]
    return [(2.0, curl) for curl in curls] + [(2.2, cap)]


def _glasses(rng: np.random.Generator) -> Sequence[Knots]:
    radius_x, radius_y = rng.uniform(19, 24), rng.uniform(14, 20)
    angle = np.linspace(0, 2 * np.pi, 17)
    rims = [
        (2.0, [(x + radius_x * np.cos(a), y + 1 + radius_y * np.sin(a)) for a in angle])
        for x, y in EYES.tolist()
    ]
    (left, height), (right, _) = EYES.tolist()
    bridge = [(left + radius_x, height), ((left + right) / 2, height - 4), (right - radius_x, height)]
    return [*rims, (2.0, bridge)]


def _beard(rng: np.random.Generator) -> Sequence[Knots]:
    """Return short lines along the jaw and over the lip."""
    count = int(rng.integers(18, 34))
    lines: list[Knots] = []
    for t in np.linspace(-1, 1, count):
        x, y = 128 + 50 * t, 216 - 34 * t * t
        lines.append((1.4, [(x, y - 8), (x + rng.normal(0, 1.5), y), (x + rng.normal(0, 2), y + 8)]))
    lines += [(1.6, [(128 + x, 172), (128 + x * 1.15, 178)]) for x in range(-20, 21, 5)]
    return lines
