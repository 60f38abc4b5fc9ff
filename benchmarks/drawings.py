"""Whether drawings made by different means become faces: cleaned, translated, and looked at by the finder.

    python benchmarks/drawings.py --json benchmarks/results/drawings.json --sheet sheet.png

Line-drawn faces, each another one, are put on paper or screen by 14 means: fine liner, marker, pencil, phone
photos and so on. Each picture goes through `psp_rt.drawings.clean` and the sketch model. Two figures for
each: whether the face finder sees a face in the result with a score of at least 0.5, and how far its eyes
lie from where the drawing has them, as a part of the width.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from benchmarks import ROOT
from benchmarks.drawn_faces import SHEET, DrawnFace, Points, drawn_face
from benchmarks.report import provenance
from psp_rt import PspError, Translator, drawings, faces
from psp_rt.errors import InputError
from psp_rt.files import check_writable, write_atomically

PROGRAM = "benchmarks/drawings.py"
GOALS = {"seen": 0.95, "eyes": 0.08}
MIN_SCORE = 0.5
TILE = 160  # pixels of a picture on the sheet

Field = npt.NDArray[np.float64]
Color = Sequence[float] | npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]  # [3, 3]: from the face's sheet to the picture


@dataclass(frozen=True, kw_only=True)
class Case:
    """A picture of a drawing."""

    means: str
    picture: Image.Image
    eyes: Points  # [2, 2] in pixels of the picture, the left one first


def placed(
    face: DrawnFace,
    size: tuple[int, int],
    side: float,
    at: tuple[float, float],
    *,
    degrees: float = 0,
    pen: float = 1.0,
) -> tuple[Field, Matrix]:
    """Return how much ink a face leaves on a sheet, 0 to 1, and the matrix from the face to the sheet.

    Args:
        face: Drawn on 256x256.
        size: Width and height of the sheet in pixels.
        side: Of the face's 256 pixels on the sheet.
        at: Where their upper left corner goes.
        degrees: How far the drawing is turned clockwise.
        pen: Factor of the width of the lines.
    """
    scale, angle = side / SHEET, math.radians(degrees)
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    middle = np.array(at) + side / 2
    shift = middle - np.array([[cos, -sin], [sin, cos]]) @ [SHEET / 2, SHEET / 2]
    matrix = np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]], [0, 0, 1]])
    return np.asarray(face.on(size, matrix, pen=pen), float) / 255, matrix


def _case(means: str, picture: Image.Image, face: DrawnFace, matrix: Matrix) -> Case:
    return Case(means=means, picture=picture, eyes=_mapped(matrix, face.eyes))


def _on_paper(
    ink: Field, rng: np.random.Generator, *, paper: Color, pen: Color, grain: float = 3
) -> Image.Image:
    """Return ink of a color on paper of a color (0 to 255) with some grain."""
    colors = ink[:, :, None] * np.array(pen, float) + (1 - ink[:, :, None]) * np.array(paper, float)
    return _image(colors + rng.normal(0, grain, ink.shape)[:, :, None])


def _image(values: npt.NDArray[Any]) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _mapped(matrix: Matrix, points: Points) -> Points:
    """Return points after a perspective transform."""
    moved = np.column_stack([points, np.ones(len(points))]) @ matrix.T
    return moved[:, :2] / moved[:, 2:]


def _near(rng: np.random.Generator, value: float, spread: float) -> float:
    return float(rng.uniform(value - spread, value + spread))


# The means.


def clean_file(face: DrawnFace, rng: np.random.Generator) -> Case:
    """As the training's drawings: black on white, in place."""
    ink, matrix = placed(face, (512, 512), 512, (0, 0))
    return _case("clean file", _image(255 * (1 - 0.85 * ink)), face, matrix)


def fine_liner(face: DrawnFace, rng: np.random.Generator) -> Case:
    """A thin black pen on white paper, scanned."""
    ink, matrix = placed(face, (900, 1200), 640, (130, 240), pen=0.6, degrees=_near(rng, 0, 4))
    return _case("fine liner", _on_paper(ink, rng, paper=(246, 246, 242), pen=(30, 30, 34)), face, matrix)


def thick_marker(face: DrawnFace, rng: np.random.Generator) -> Case:
    """A felt marker, as broad as it gets."""
    ink, matrix = placed(face, (800, 800), 720, (40, 40), pen=_near(rng, 2.0, 0.3))
    return _case("thick marker", _on_paper(ink, rng, paper=(250, 249, 246), pen=(15, 15, 20)), face, matrix)


def pencil(face: DrawnFace, rng: np.random.Generator) -> Case:
    """Soft gray lines with hatching in the hair and under the chin."""
    ink, matrix = placed(face, (900, 1100), 700, (100, 190), pen=0.9)
    hatching, _ = placed(face.hatching(rng), (900, 1100), 700, (100, 190), pen=0.6)
    grain = np.clip(rng.normal(0.75, 0.2, ink.shape), 0.2, 1)
    both = np.clip(0.75 * ink + 0.3 * hatching, 0, 1) * grain
    shown = _on_paper(both, rng, paper=(240, 238, 232), pen=(60, 60, 66))
    return _case("pencil", shown.filter(ImageFilter.GaussianBlur(0.7)), face, matrix)


def colored_paper(face: DrawnFace, rng: np.random.Generator) -> Case:
    """Ink on kraft paper, or on blue, green or pink."""
    papers = ((186, 150, 108), (150, 180, 215), (170, 205, 160), (235, 180, 190))
    ink, matrix = placed(face, (900, 900), 700, (100, 90), degrees=_near(rng, 0, 5))
    paper = papers[rng.integers(len(papers))]
    return _case("colored paper", _on_paper(ink, rng, paper=paper, pen=(35, 30, 30), grain=6), face, matrix)


def colored_pens(face: DrawnFace, rng: np.random.Generator) -> Case:
    """Each line in another color on white."""
    pens = ((200, 30, 40), (30, 60, 190), (20, 130, 60), (220, 110, 10), (120, 40, 150))
    picture = np.full((800, 800, 3), 252.0)
    for number, part in enumerate(face.parts()):
        ink, matrix = placed(part, (800, 800), 680, (60, 60))
        pen = np.array(pens[(number + rng.integers(2)) % len(pens)], float)
        picture = ink[:, :, None] * pen + (1 - ink[:, :, None]) * picture
    return _case("colored pens", _image(picture + rng.normal(0, 2, picture.shape)), face, matrix)


def phone_photo(face: DrawnFace, rng: np.random.Generator) -> Case:
    """A sheet photographed at an angle, with the shadow of the hand."""
    return _photographed("phone photo", face, rng, table=False)


def on_a_table(face: DrawnFace, rng: np.random.Generator) -> Case:
    """The same, with the dark table around the sheet."""
    return _photographed("on a table", face, rng, table=True)


def _photographed(means: str, face: DrawnFace, rng: np.random.Generator, *, table: bool) -> Case:
    size = (900, 1200)
    ink, matrix = placed(face, size, 620, (140, 260), degrees=_near(rng, 0, 6))
    sheet = _on_paper(ink, rng, paper=(235, 230, 220), pen=(40, 40, 50))

    # The corners of the sheet in the photo: outside of it, or on the table.
    reach = 90 if table else -120
    corners = np.array([[0, 0], [size[0], 0], [size[0], size[1]], [0, size[1]]], float)
    inward = np.sign(np.array(size) / 2 - corners)
    seen = corners + inward * (reach + rng.uniform(-60, 60, corners.shape))
    view = _perspective(corners, seen)
    wood = tuple(int(value) for value in rng.uniform((70, 45, 30), (110, 80, 60)))
    inverse = np.linalg.inv(view)
    inverse /= inverse[2, 2]
    photo = sheet.transform(
        size,
        Image.Transform.PERSPECTIVE,
        tuple(inverse.ravel()[:8]),
        Image.Resampling.BICUBIC,
        fillcolor=wood if table else (235, 230, 220),
    )

    # A shadow with a soft edge, and light from one side.
    y, x = np.mgrid[: size[1], : size[0]]
    slope, edge = rng.uniform(-0.6, 0.6), rng.uniform(100, 500)
    shadow = 1 / (1 + np.exp((x - slope * y - edge) / 30))
    light = (1 - _near(rng, 0.4, 0.1) * shadow) * (0.7 + 0.3 * x / size[0])
    noisy = np.asarray(photo, float) * light[:, :, None] + rng.normal(0, 5, (size[1], size[0], 3))
    return _case(means, _image(noisy), face, view @ matrix)


def white_on_black(face: DrawnFace, rng: np.random.Generator) -> Case:
    """Drawn on a tablet with a dark canvas."""
    ink, matrix = placed(face, (1000, 750), 640, (180, 60), pen=_near(rng, 1.0, 0.3))
    ground, pen = rng.uniform(0, 40, 3), rng.uniform(215, 255, 3)
    return _case("white on black", _on_paper(ink, rng, paper=ground, pen=pen, grain=0), face, matrix)


def engraving(face: DrawnFace, rng: np.random.Generator) -> Case:
    """Lines over all of the face, denser where it is darker, printed and scanned."""
    size = (900, 1000)
    ink, matrix = placed(face, size, 760, (70, 130))
    y, x = np.mgrid[: size[1], : size[0]].astype(float)
    shade = np.asarray(_image(255 * ink).filter(ImageFilter.GaussianBlur(24)), float) / 255
    angle, period = rng.uniform(0.3, 0.9), _near(rng, 11, 2)
    screen = 0.5 + 0.5 * np.sin(2 * math.pi * (x * math.sin(angle) + y * math.cos(angle)) / period)
    inside, _ = placed(face.outline_area(), size, 760, (70, 130))
    lines = np.clip(3 * (0.15 * inside + 0.9 * shade - screen * 0.9), 0, 1)
    shown = _on_paper(np.maximum(0.8 * lines, ink), rng, paper=(232, 222, 200), pen=(50, 42, 36), grain=6)
    return _case("engraving", shown, face, matrix)


def off_center(face: DrawnFace, rng: np.random.Generator) -> Case:
    """A small drawing somewhere on a large sheet."""
    side = _near(rng, 380, 60)
    at = (rng.uniform(20, 1180 - side), rng.uniform(20, 1580 - side))
    ink, matrix = placed(face, (1200, 1600), side, at)
    return _case("off center", _on_paper(ink, rng, paper=(248, 248, 245), pen=(25, 25, 30)), face, matrix)


def cropped_chin(face: DrawnFace, rng: np.random.Generator) -> Case:
    """The sheet ends below the mouth."""
    ink, matrix = placed(face, (700, 600), 700, (0, -float(rng.uniform(10, 50))))
    return _case("cropped chin", _on_paper(ink, rng, paper=(250, 250, 250), pen=(20, 20, 20)), face, matrix)


def framed(face: DrawnFace, rng: np.random.Generator) -> Case:
    """A frame of ink around the drawing."""
    ink, matrix = placed(face, (800, 900), 600, (100, 160))
    frame = Image.new("L", (800, 900))
    inset, width = int(rng.integers(20, 50)), int(rng.integers(3, 14))
    ImageDraw.Draw(frame).rectangle((inset, inset, 800 - inset, 900 - inset), outline=255, width=width)
    both = np.maximum(ink, np.asarray(frame, float) / 255)
    return _case("with a frame", _on_paper(both, rng, paper=(244, 240, 232), pen=(30, 28, 30)), face, matrix)


def transparent(face: DrawnFace, rng: np.random.Generator) -> Case:
    """A PNG whose paper is transparent."""
    ink, matrix = placed(face, (640, 640), 600, (20, 20))
    layers = np.zeros((640, 640, 4), np.uint8)
    layers[:, :, :3], layers[:, :, 3] = rng.integers(0, 50, 3), np.rint(255 * ink)
    return _case("transparent", Image.fromarray(layers), face, matrix)


def graph_paper(face: DrawnFace, rng: np.random.Generator) -> Case:
    """A ballpoint pen on squared paper."""
    ink, matrix = placed(face, (900, 900), 720, (90, 90))
    step = int(rng.integers(28, 44))
    grid = np.zeros((900, 900))
    grid[::step], grid[:, ::step] = 1, 1
    grid[1::step], grid[:, 1::step] = 1, 1
    paper = _on_paper(0.6 * grid, rng, paper=(246, 246, 242), pen=(120, 170, 220), grain=2)
    pen = np.array((30, 40, 120), float)
    picture = np.asarray(paper, float) * (1 - ink[:, :, None]) + pen * ink[:, :, None]
    return _case("graph paper", _image(picture), face, matrix)


MEANS: tuple[Callable[[DrawnFace, np.random.Generator], Case], ...] = (
    *(clean_file, fine_liner, thick_marker, pencil, colored_paper, colored_pens, phone_photo, on_a_table),
    *(white_on_black, engraving, off_center, cropped_chin, framed, transparent, graph_paper),
)


def _perspective(corners: Points, seen: Points) -> Matrix:
    """Return the matrix [3, 3] that takes four corners to where they are seen."""
    rows, values = [], []
    for (x, y), (u, v) in zip(corners, seen, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(values)), 1).reshape(3, 3)


# Measuring.


def measure(
    translator: Translator, *, each: int, seed: int
) -> tuple[list[dict[str, Any]], list[list[Image.Image]]]:
    """Return a row for each drawing, and its picture, its cleaned form and its result for the sheet."""
    rows, shown = [], []
    for number, means in enumerate(MEANS):
        for index in range(each):
            rng = np.random.default_rng([seed, number, index])
            case = means(drawn_face(rng), rng)
            row: dict[str, Any] = {"means": case.means, "score": 0.0, "eyes": None}
            pictures = [case.picture]
            try:
                cleaned = drawings.clean(case.picture)
                result = translator.run(cleaned.picture)
                pictures += [cleaned.picture, result]
                row |= {"report": cleaned.report, **_judge(result, _in_quad(case.eyes, cleaned.quad))}
            except InputError as error:
                row["report"] = str(error)
            rows.append(row)
            shown.append(pictures)
    return rows, shown


def _judge(result: Image.Image, expected: Points) -> dict[str, Any]:
    """Return the score of the face in a result, and the mean distance of its eyes, as a part of the width."""
    found = faces.find(result)
    if not found:
        return {}
    eyes = (found[0].eyes + 0.5) / result.width
    return {
        "score": round(found[0].score, 3),
        "eyes": round(float(np.hypot(*(eyes - expected).T).mean()), 4),
    }


def _in_quad(points: Points, quad: Points) -> Points:
    """Return where points of a picture lie in the crop of a quad, 0 to 1."""
    axes = np.column_stack([quad[3] - quad[0], quad[1] - quad[0]])
    return (points - quad[0]) @ np.linalg.inv(axes).T


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of some drawings."""
    eyes = [row["eyes"] for row in rows if row["eyes"] is not None]
    return {
        "count": len(rows),
        "seen": sum(row["score"] >= MIN_SCORE for row in rows) / len(rows),
        "eyes_within": sum(distance <= GOALS["eyes"] for distance in eyes) / len(rows),
        "eyes_mean": float(np.mean(eyes)) if eyes else None,
        "eyes_max": max(eyes, default=None),
    }


def as_text(result: dict[str, Any]) -> str:
    """Return the figures as a table."""
    lines = [f"{'':16} {'count':>5} {'seen':>6} {'within':>7} {'mean':>6} {'max':>6}"]
    for name, row in (*result["means"].items(), ("all", result["all"])):
        far = " ".join(
            "     -" if row[key] is None else f"{row[key]:6.1%}" for key in ("eyes_mean", "eyes_max")
        )
        lines.append(f"{name:16} {row['count']:5} {row['seen']:6.0%} {row['eyes_within']:7.0%} {far}")
    return "\n".join(lines)


def sheet(shown: Sequence[Sequence[Image.Image]], *, across: int) -> Image.Image:
    """Return all drawings with their cleaned forms and results below them."""
    down = math.ceil(len(shown) / across)
    page = Image.new("RGB", (across * TILE, down * 3 * TILE), "gray")
    for index, pictures in enumerate(shown):
        for row, picture in enumerate(pictures):
            tile = faces.upright_rgb(picture)
            tile.thumbnail((TILE - 4, TILE - 4))
            page.paste(tile, (index % across * TILE, (index // across * 3 + row) * TILE))
    return page


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    grammar = argparse.ArgumentParser(
        prog="drawings.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = grammar.add_argument
    add("--engine", type=Path, default=ROOT / "models" / "sketch.engine", metavar="FILE")
    add("--each", type=int, default=3, help="drawings by each means (default: 3)")
    add("--seed", type=int, default=0)
    add("--sheet", type=Path, metavar="FILE", help="a picture of all drawings and results, to look at")
    add("--json", type=Path, metavar="FILE")
    args = grammar.parse_args(arguments)
    try:
        for file in (args.json, args.sheet):
            if file:
                check_writable(file)
        with Translator(args.engine, device="cpu", threads=1) as translator:
            rows, shown = measure(translator, each=args.each, seed=args.seed)
        names = list(dict.fromkeys(row["means"] for row in rows))
        result = {
            "goals": GOALS,
            "all": summary(rows),
            "means": {name: summary([row for row in rows if row["means"] == name]) for name in names},
            "drawings": rows,
            "provenance": provenance.collect(arguments, threads=1, program=PROGRAM),
        }
    except PspError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(as_text(result))
    if args.sheet:
        sheet(shown, across=3 * args.each).save(args.sheet)
    if args.json:
        write_atomically(args.json, json.dumps(result, indent=1, allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
