"""One picture in many styles: a row for each seed, a column for how far the result moves towards it.

    python examples/style_grid.py sketch.engine drawing.png grid.png --seeds 1 2 3 --alphas 0.5 1 --layers 3-

The picture is encoded once and each seed mapped once; a column is generated as one batch.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import psp_rt


def style_grid(
    translator: psp_rt.Translator, picture: str, *, seeds: Sequence[int], alphas: Sequence[float], layers: str
) -> np.ndarray:
    """Return the results as one picture [seeds * H, alphas * W, 3]."""
    codes = translator.encode(picture)
    styles = np.stack([translator.sample(seed) for seed in seeds])
    columns = [
        translator.generate(codes, psp_rt.StyleMix(styles, layers=layers, alpha=alpha)) for alpha in alphas
    ]
    return np.concatenate([np.concatenate(column, axis=0) for column in columns], axis=1)


def main() -> None:
    """Write the grid."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("engine")
    parser.add_argument("picture")
    parser.add_argument("output")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.25, 0.5, 0.75, 1])
    parser.add_argument("--layers", default="8-", help="The paper's, counted from 1. Default: 8-")
    arguments = parser.parse_args()
    if Path(arguments.output).resolve() == Path(arguments.picture).resolve():
        raise SystemExit(f"Error: {arguments.output} is the picture, and would be overwritten")
    try:
        with psp_rt.Translator(arguments.engine, color="rgb") as translator:
            grid = style_grid(
                translator,
                arguments.picture,
                seeds=arguments.seeds,
                alphas=arguments.alphas,
                layers=arguments.layers,
            )
    except psp_rt.PspError as error:
        raise SystemExit(f"Error: {error}") from None
    try:
        Image.fromarray(grid).save(arguments.output)
    except (OSError, ValueError) as error:  # no such folder, or no kind of picture
        raise SystemExit(f"Error: {arguments.output} cannot be written: {error}") from None
    print(f"wrote {arguments.output}: {len(arguments.seeds)} seeds, {len(arguments.alphas)} strengths")


if __name__ == "__main__":
    main()
