"""How often and how exactly the face finder finds faces, and how long it takes.

    python benchmarks/faces.py --portraits photos --json benchmarks/results/faces.json

Portraits, aligned roughly or exactly, are put into pictures of 640x480 with a known position, size and
turn. The crop that the finder cuts there is compared with the crop that it cuts when the same portrait
stands upright and large: what counts is that a face is cut in the same way however it is shown.

    upright      320 pixels, in the middle: the reference
    pasted       140 to 320 pixels, turned up to 30 degrees
    rotated      160 to 300 pixels, turned 40 to 90 degrees either way
    upside_down  160 to 300 pixels, turned 150 to 210 degrees
    small        56 to 110 pixels, turned up to 15 degrees
    dark         pasted, a third as bright, with noise and a JPEG of quality 40

Sizes are those of the portrait; a face's square is about as large. Times are CPU seconds of the process on
one thread, so that other processes disturb them little.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from benchmarks.report import provenance
from psp_rt import PspError
from psp_rt.errors import InputError
from psp_rt.faces import Face, MeshFinder, upright_rgb
from psp_rt.files import check_writable, write_atomically
from psp_rt.images import Pixels, is_picture_file

PROGRAM = "benchmarks/faces.py"
WIDTH, HEIGHT = 640, 480
KINDS = ("upright", "pasted", "rotated", "upside_down", "small", "dark")
CROP = 256  # pixels of the crop in which distances are given
WRONG = 60.0  # pixels of mean distance from which a face was taken for something else, or upside down
GOALS = {"found": 0.98, "mean_px": 1.2, "p95_px": 3.0, "onnxruntime_ms": 40.0, "openvino_ms": 20.0}

Matrix = npt.NDArray[np.float64]  # [2, 3]: from the portrait, a unit square, to the picture


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A picture with a face whose place is known."""

    kind: str
    pixels: Pixels
    place: Matrix


def samples(portrait: Image.Image, rng: np.random.Generator) -> Iterator[Sample]:
    """Yield a portrait in a picture of each kind."""
    ground = _ground(rng)

    def sample(kind: str, side: float, degrees: float, *, anywhere: bool = False) -> Sample:
        place = _place(side, degrees, rng if anywhere else None)
        return Sample(kind=kind, pixels=_pasted(portrait, ground, place), place=place)

    yield sample("upright", 320, 0)
    pasted = sample("pasted", rng.uniform(140, 320), rng.uniform(-30, 30), anywhere=True)
    yield pasted
    yield sample("rotated", rng.uniform(160, 300), rng.uniform(40, 90) * rng.choice([-1, 1]))
    yield sample("upside_down", rng.uniform(160, 300), rng.uniform(150, 210))
    yield sample("small", rng.uniform(56, 110), rng.uniform(-15, 15), anywhere=True)
    yield Sample(kind="dark", pixels=_darkened(pasted.pixels, rng), place=pasted.place)


def measure(portraits: Sequence[Path], *, seed: int, backends: Sequence[str]) -> dict[str, Any]:
    """Return, for each backend, what was found of each kind, how exactly, and in which time."""
    finders = {name: MeshFinder(threads=1, backend=name) for name in backends}
    corners: dict[str, dict[str, list[Matrix | None]]] = {
        name: {kind: [] for kind in KINDS} for name in finders
    }
    times_ms: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in KINDS} for name in finders}
    for number, path in enumerate(portraits):
        rng = np.random.default_rng([seed, number])
        for sample in samples(upright_rgb(path), rng):
            for name, finder in finders.items():
                start = time.process_time()
                found = finder.find(sample.pixels)
                times_ms[name][sample.kind].append(1000 * (time.process_time() - start))
                corners[name][sample.kind].append(_in_portrait(found, sample.place))
    return {name: _summary(corners[name], times_ms[name]) for name in finders}


def _summary(corners: dict[str, list[Matrix | None]], times_ms: dict[str, list[float]]) -> dict[str, Any]:
    rows = {}
    for kind in KINDS:
        distances: list[float] = []
        missed: list[int] = []
        for number, (found, upright) in enumerate(zip(corners[kind], corners["upright"], strict=True)):
            distance = math.inf
            if found is not None and upright is not None:
                distance = float(np.hypot(*(found - upright).T).mean()) * CROP
            if distance < WRONG:
                distances.append(distance)
            else:
                missed.append(number)
        rows[kind] = {
            "count": len(corners[kind]),
            "found": len(distances) / len(corners[kind]),
            "missed": missed,
            "mean_px": float(np.mean(distances)) if distances else None,
            "p95_px": float(np.percentile(distances, 95)) if distances else None,
            "median_ms": float(np.median(times_ms[kind])),
            "p95_ms": float(np.percentile(times_ms[kind], 95)),
        }
    every = [value for values in times_ms.values() for value in values]
    return {"kinds": rows, "median_ms": float(np.median(every)), "p95_ms": float(np.percentile(every, 95))}


def _in_portrait(found: list[Face], place: Matrix) -> Matrix | None:
    """Return the quad of the face nearest to where it should be, in the portrait's unit square."""
    if not found:
        return None
    middle = place[:, :2] @ [0.5, 0.5] + place[:, 2]
    nearest = min(found, key=lambda face: float(np.hypot(*(face.quad.mean(0) + 0.5 - middle))))
    quad: Matrix = (nearest.quad + 0.5 - place[:, 2]) @ np.linalg.inv(place[:, :2]).T
    return quad


def _place(side: float, degrees: float, rng: np.random.Generator | None) -> Matrix:
    """Return where a portrait goes: in the middle, or anywhere that it fits."""
    angle = math.radians(degrees)
    turn = side * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    center = np.array([WIDTH / 2, HEIGHT / 2])
    if rng is not None:
        reach = np.minimum(np.abs(turn).sum(axis=1) / 2, center)
        center = rng.uniform(reach, 2 * center - reach)
    return np.column_stack([turn, center - turn @ [0.5, 0.5]])


def _ground(rng: np.random.Generator) -> Image.Image:
    """Return a picture of smooth colors with some grain."""
    colors = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(colors.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), float)
    return _as_image(smooth + rng.normal(0, 6, smooth.shape))


def _pasted(portrait: Image.Image, ground: Image.Image, place: Matrix) -> Pixels:
    """Return the ground with a portrait at its place, with soft edges, without aliasing."""
    side = math.hypot(*place[:, 0])
    shown = portrait.resize((round(2 * side),) * 2, Image.Resampling.LANCZOS)  # sampled twice as fine
    edge = max(2, round(0.04 * shown.width))
    mask = Image.new("L", shown.size, 0)
    mask.paste(255, (edge, edge, shown.width - edge, shown.height - edge))
    mask = mask.filter(ImageFilter.GaussianBlur(edge / 2))

    # From the fine picture back to the portrait: PIL maps outputs to inputs.
    inverse = np.linalg.inv(2 * place[:, :2]) * shown.width
    coefficients = np.column_stack([inverse, -inverse @ (2 * place[:, 2])])
    fine = (2 * WIDTH, 2 * HEIGHT)
    layers = (
        picture.transform(fine, Image.Transform.AFFINE, tuple(coefficients.ravel()), Image.Resampling.BICUBIC)
        for picture in (shown, mask)
    )
    layer, alpha = (picture.resize((WIDTH, HEIGHT), Image.Resampling.BOX) for picture in layers)
    return np.asarray(Image.composite(layer, ground, alpha))


def _darkened(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Return a picture as a poor camera takes it in poor light."""
    values = 255 * (pixels / 255) ** 1.8 * 0.6
    stored = io.BytesIO()
    _as_image(values + rng.normal(0, 8, values.shape)).save(stored, format="JPEG", quality=40)
    return np.asarray(Image.open(stored))


def _as_image(values: npt.NDArray[Any]) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def choose(folder: Path, count: int) -> list[Path]:
    """Return ``count`` pictures of a folder, evenly from all of them in the order of their names.

    Raises:
        InputError: The folder has fewer.
    """
    found = sorted(path for path in folder.iterdir() if is_picture_file(path)) if folder.is_dir() else []
    if len(found) < count:
        raise InputError(
            f"{folder} holds {len(found)} pictures; expected a folder of at least {count} portraits"
        )
    return [found[index * len(found) // count] for index in range(count)]


def as_text(result: dict[str, Any]) -> str:
    """Return the figures as a table."""
    lines = []
    for name, own in result["backends"].items():
        lines.append(f"{name}: median {own['median_ms']:.1f} ms, 95 % within {own['p95_ms']:.1f} ms")
        lines.append(f"  {'':12} {'found':>6} {'mean px':>8} {'p95 px':>7} {'median ms':>10}")
        for kind, row in own["kinds"].items():
            near = f"{row['mean_px']:8.2f} {row['p95_px']:7.2f}" if row["mean_px"] is not None else " " * 16
            lines.append(f"  {kind:12} {row['found']:6.1%} {near} {row['median_ms']:10.1f}")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    grammar = argparse.ArgumentParser(
        prog="faces.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = grammar.add_argument
    add("--portraits", type=Path, required=True, metavar="DIR", help="a folder of portraits, one face each")
    add("--count", type=int, default=50, help="portraits to use (default: 50)")
    add("--seed", type=int, default=0)
    add("--backends", nargs="+", default=["onnxruntime", "openvino"], choices=["onnxruntime", "openvino"])
    add("--json", type=Path, metavar="FILE")
    args = grammar.parse_args(arguments)
    try:
        if args.json:
            check_writable(args.json)
        portraits = choose(args.portraits, args.count)
        result = {
            "goals": GOALS,
            "seed": args.seed,
            "backends": measure(portraits, seed=args.seed, backends=args.backends),
            "provenance": provenance.collect(arguments, threads=1, program=PROGRAM),
        }
    except PspError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(as_text(result))
    if args.json:
        write_atomically(args.json, json.dumps(result, indent=1, allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
