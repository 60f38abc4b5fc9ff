"""The FP16 graphs of an engine: measured on codes, written, emulated and compared with FP32."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.graphs import activations, emulation, fp16
from export.graphs.activations import Feeds
from export.parity import psnr_db
from psp_rt import InputError, InputSpec, OutputError, Translator
from psp_rt.images import is_picture_file, read_pictures

SEEDS = (0, 1, 2, 3)  # random styles
MAX_PICTURES = 16  # at full size each takes seconds


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What activations are measured on, and what FP32 makes of it.

    Args:
        images: What the encoder takes [K, H, W, C]; None for a generator alone.
        codes: Those of the images, then random styles [M, L, D].
        pictures: What FP32 makes of the codes [M, H, W, 3].
    """

    images: NDArray[np.uint8] | None
    codes: NDArray[np.float32]
    pictures: NDArray[np.uint8]


def load_pictures(paths: Sequence[Path], spec: InputSpec | None) -> NDArray[np.uint8] | None:
    """Read the pictures that the user gives to measure on, as the encoder takes them; None for none.

    Args:
        paths: Files, and folders of which the first `MAX_PICTURES` files are taken.
        spec: What the encoder takes.
    """
    if not paths:
        return None
    if spec is None:
        raise InputError("--pictures are for an encoder, and this is a generator alone; leave them out")
    found = [file for path in paths for file in _files(path)]
    return read_pictures(found[:MAX_PICTURES], spec, color="rgb").pixels


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if is_picture_file(file))
    if not found:
        raise InputError(f"the folder {path} holds no pictures")
    return found


def sample(engine: Path, images: NDArray[np.uint8] | None) -> Samples:
    """Run the FP32 graphs of an engine on images and on random styles."""
    with Translator(engine, device="cpu", backend="onnxruntime", color="rgb", max_batch=1) as translator:
        codes = [translator.sample(seed)[None] for seed in SEEDS]
        if images is not None:
            shown = images if images.shape[3] == 3 else images[..., 0]
            codes.insert(0, translator.encode(list(shown)))
        together = np.concatenate(codes)
        return Samples(images=images, codes=together, pictures=translator.generate(together))


def write(folder: Path, name: str, samples: Samples) -> tuple[Path, tuple[str, ...]]:
    """Write NAME.fp16.onnx beside NAME.onnx; return its path and the nodes that stay in FP32 for range.

    Raises:
        OutputError: A graph computes NaN or infinity even in FP32.
    """
    path = folder / f"{name}.onnx"
    measured = activations.measure(path, _inputs(name, samples))
    endless = [tensor for tensor, found in measured.items() if not np.isfinite(found.largest)]
    if endless:
        raise OutputError(
            f"the {name} computes NaN or infinity in FP32 already, in {endless[0]}; nothing was written"
        )
    return fp16.write(path, measured)


def compare(folder: Path, samples: Samples) -> dict[str, float]:
    """Emulate the FP16 graphs of a folder and return how far their pictures are from those of FP32."""
    generator = emulation.session(folder / "generator.fp16.onnx")

    def generate(codes: NDArray[np.float32]) -> NDArray[np.uint8]:
        return np.concatenate([generator.run(None, dict(feeds))[0] for feeds in styled_inputs(codes)])

    figures = {"fp16_generator_psnr_db": worst_psnr_db(generate(samples.codes), samples.pictures)}
    if samples.images is not None:
        encoder = emulation.session(folder / "encoder.fp16.onnx")
        codes = [encoder.run(None, dict(feeds))[0] for feeds in _inputs("encoder", samples)]
        pictures = generate(np.concatenate(codes))
        figures["fp16_end_to_end_psnr_db"] = worst_psnr_db(pictures, samples.pictures[: len(pictures)])
    return figures


def worst_psnr_db(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio of the worst picture of a batch."""
    return min(psnr_db(one, other) for one, other in zip(found, expected, strict=True))


def _inputs(name: str, samples: Samples) -> Iterator[Feeds]:
    """Yield a graph's inputs one by one: at full size a batch's maps are gigabytes."""
    if name == "generator":
        yield from styled_inputs(samples.codes)
    elif samples.images is not None:
        for image in samples.images:
            yield {"image": image[None]}


def styled_inputs(codes: NDArray[np.float32]) -> Iterator[Feeds]:
    """Yield the generator's inputs for codes [M, L, D] that nothing is mixed into, one by one."""
    for code in codes:
        yield {
            "codes": code[None],
            "reference": code[None],
            "weights": np.zeros((1, len(code)), np.float32),
        }
