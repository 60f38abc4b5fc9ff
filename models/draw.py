"""Draw the sketch that `make demo` translates: ``python models/draw.py models/drawing.png``.

Nobody's photo is behind it. The curves are given by points on a 256-pixel sheet, where the model
expects eyes and mouth, and drawn with a slightly unsteady pen.
"""

import sys

import numpy as np
from PIL import Image, ImageDraw

SHEET, SCALE = 256, 4
STROKES = [  # pen width, points
    (2.6, [(68, 118), (70, 150), (77, 180), (92, 206), (112, 222), (128, 226),
           (144, 222), (164, 206), (179, 180), (186, 150), (188, 118)]),  # jaw
    (2.2, [(68, 122), (60, 118), (57, 132), (62, 150), (70, 156)]),  # ears
    (2.2, [(188, 122), (196, 118), (199, 132), (194, 150), (186, 156)]),
    (3.0, [(66, 122), (58, 92), (62, 60), (84, 34), (118, 22), (150, 24), (178, 42),
           (194, 70), (196, 98), (190, 122)]),  # hair
    (2.2, [(70, 112), (76, 88), (92, 72), (112, 70), (134, 62), (152, 70), (172, 78), (182, 94), (186, 112)]),
    (1.6, [(112, 70), (124, 52), (142, 42)]),
    (1.6, [(134, 62), (150, 48), (168, 48)]),
    (1.6, [(84, 76), (92, 56), (106, 44)]),
    (2.8, [(80, 105), (90, 99), (103, 99), (113, 104)]),  # brows
    (2.8, [(143, 104), (153, 99), (166, 99), (176, 105)]),
    (2.4, [(82, 121), (90, 114), (100, 113), (108, 119), (112, 123)]),  # eyes
    (1.6, [(84, 123), (94, 127), (106, 125), (112, 123)]),
    (2.4, [(144, 123), (148, 119), (156, 113), (166, 114), (174, 121)]),
    (1.6, [(144, 123), (150, 125), (162, 127), (172, 123)]),
    (1.6, [(122, 128), (119, 146), (114, 158), (117, 164), (122, 163)]),  # nose
    (2.0, [(122, 165), (128, 168), (134, 165)]),
    (1.6, [(134, 163), (140, 164), (142, 158), (139, 152)]),
    (2.4, [(101, 186), (114, 183), (123, 181), (128, 183), (133, 181), (142, 183), (155, 186)]),  # mouth
    (2.0, [(101, 186), (114, 189), (128, 190), (142, 189), (155, 186)]),
    (2.0, [(109, 191), (120, 198), (128, 200), (136, 198), (147, 191)]),
    (2.2, [(92, 206), (92, 226), (80, 238), (52, 246), (34, 255)]),  # neck and collar
    (2.2, [(164, 206), (164, 226), (176, 238), (204, 246), (222, 255)]),
    (1.8, [(92, 228), (108, 244), (128, 254), (148, 244), (164, 228)]),
]  # fmt: skip
IRISES = [((97, 120), 5.5), ((159, 120), 5.5)]  # center, radius


def curve(points: list[tuple[float, float]], steps: int = 24) -> np.ndarray:
    """Return a smooth line through the points (Catmull-Rom), [M, 2]."""
    p = np.array([points[0], *points, points[-1]], dtype=float)
    t = np.linspace(0, 1, steps)[:, None]
    parts = []
    for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False):
        parts.append(b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a))))
    return np.concatenate(parts)


def draw() -> Image.Image:
    """Return the drawing, 256x256, dark lines on white."""
    rng = np.random.default_rng(4)
    sheet = Image.new("L", (SHEET * SCALE, SHEET * SCALE), 255)
    pen = ImageDraw.Draw(sheet)
    for width, points in STROKES:
        line = curve([(x + rng.normal(0, 0.5), y + rng.normal(0, 0.5)) for x, y in points])
        ends = np.minimum(np.linspace(0, 8, len(line)), np.linspace(8, 0, len(line))).clip(0.45, 1)
        for (x, y), press in zip(line * SCALE, ends, strict=True):
            r = width * press * SCALE / 2
            pen.ellipse((x - r, y - r, x + r, y + r), fill=40)
    for center, radius in IRISES:
        r = radius * SCALE
        x, y = center[0] * SCALE, center[1] * SCALE
        pen.ellipse((x - r, y - r, x + r, y + r), fill=60)
        pen.ellipse((x - r * 0.1, y - r * 0.6, x + r * 0.4, y - r * 0.1), fill=255)
    return sheet.resize((SHEET, SHEET), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    draw().save(sys.argv[1])
