"""Compare each layer of an FP16 graph with the same layer without rounding, on given inputs.

Both run on a CPU, FP16 emulated (`graphs.activations`), through NVIDIA's Polygraphy: it makes tensors
outputs, runs both graphs on the same inputs, and writes files that its tools read on a GPU. Its own PSNR
takes the largest value as the peak, which means little for negative values, so here the peak is the range of
the tensor in FP32.

At full size all maps together are gigabytes, so the graphs run several times, each time for some tensors.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from polygraphy.backend.onnx import ModifyOutputs
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.comparator import Comparator, RunResults
from polygraphy.json import save_json
from polygraphy.logger import G_LOGGER

from export.graphs.activations import Feeds, constant_arrays, emulated, float_tensors, unrounded
from export.inspect.layers import Layer, known_shapes, read_layers
from psp_rt.errors import OutputError

FP32, FP16 = "fp32", "fp16-emulated"
BYTES_AT_ONCE = 1 << 29  # for both graphs, on all inputs
EQUAL_DB = 99.0
KEPT = ("Conv", "ConvTranspose", "Gemm")  # saved for Polygraphy; all maps would be gigabytes


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference of one layer, for the worst of the inputs.

    Args:
        layer: A layer of the FP16 graph.
        largest: The largest difference between two numbers.
        relative: The same as a share of the tensor's range in FP32.
        psnr_db: Peak signal-to-noise ratio; the peak is that range, or 255 for a picture.
    """

    layer: Layer
    largest: float
    relative: float
    psnr_db: float


def compare(
    folder: Path, name: str, inputs: Sequence[Feeds], *, save_to: Path | None = None
) -> list[Difference]:
    """Return the difference of each layer of NAME.fp16.onnx from FP32, in order.

    The layers are compared with those of the same graph without rounding, because the portable graph has
    others; the result is compared with that of the portable graph.

    Args:
        folder: Contains NAME.onnx, NAME.fp16.onnx and their weights.
        name: "encoder" or "generator".
        inputs: Batches of one, each under the names of the graph's inputs.
        save_to: A folder for NAME.inputs.json and NAME.fp32.json, which Polygraphy reads.
    """
    half = onnx.load(folder / f"{name}.fp16.onnx", load_external_data=False)
    single = unrounded(half)
    layers = {layer.output: layer for layer in read_layers(half, batch=1)}
    pair = {FP32: single, FP16: emulated(half)}
    shared = _shared(single, half, folder)
    result = half.graph.output[0].name
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
    expected = [session.run([result], dict(feeds))[0] for feeds in inputs]
    found: dict[str, Difference] = {}
    kept: list[dict[str, NDArray[Any]]] = [{} for _ in inputs]
    for group in _groups(shared, single, copies=2 * len(inputs)):
        results = _run(pair, group, inputs, folder)
        for exact, other, portable, kept_here in zip(
            results[FP32], results[FP16], expected, kept, strict=True
        ):
            for tensor in group:
                layer, right = layers[tensor], portable if tensor == result else exact[tensor]
                found[tensor] = _worse(found.get(tensor), _difference(layer, right, other[tensor]))
                if save_to is not None and (layer.operator in KEPT or tensor == result):
                    kept_here[tensor] = exact[tensor]
    if save_to is not None:
        _save(save_to, name, inputs, kept)
    return [found[tensor] for tensor in layers if tensor in found]


def _shared(single: onnx.ModelProto, half: onnx.ModelProto, folder: Path) -> list[str]:
    """Return the tensors that both graphs compute, in the order of the FP32 graph."""
    constants = constant_arrays(single, folder)
    theirs = {*float_tensors(half), half.graph.output[0].name}
    ours = [*float_tensors(single), single.graph.output[0].name]
    return [name for name in dict.fromkeys(ours) if name in theirs and name not in constants]


def _groups(tensors: Sequence[str], model: onnx.ModelProto, *, copies: int) -> Iterator[list[str]]:
    """Yield the tensors in groups that together fit into `BYTES_AT_ONCE`."""
    shapes, group, size = known_shapes(model, batch=1), list[str](), 0
    for name in tensors:
        needed = 4 * prod(shapes.get(name, ())) * copies
        if group and size + needed > BYTES_AT_ONCE:
            yield group
            group, size = [], 0
        group.append(name)
        size += needed
    yield group


def _run(
    pair: Mapping[str, onnx.ModelProto], tensors: list[str], inputs: Sequence[Feeds], folder: Path
) -> Any:
    """Run both graphs and return the tensors by graph, then by input."""
    paths = {name: folder / f"marked-{name}.onnx" for name in pair}  # in the folder of the weights
    try:
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            for name, model in pair.items():
                marked = ModifyOutputs(model, outputs=tensors, copy=True)()
                paths[name].write_bytes(marked.SerializeToString())
            runners = [OnnxrtRunner(SessionFromOnnx(str(path)), name=name) for name, path in paths.items()]
            return Comparator.run(runners, data_loader=[dict(feeds) for feeds in inputs])
    finally:
        for path in paths.values():
            path.unlink(missing_ok=True)


def _difference(layer: Layer, exact: NDArray[Any], other: NDArray[Any]) -> Difference:
    peak = 255.0 if exact.dtype == np.uint8 else float(np.ptp(exact)) or float(np.abs(exact).max()) or 1.0
    error = np.abs(exact.astype(np.float64) - other.astype(np.float64))
    largest = float(error.max(initial=0))
    if not np.isfinite(largest):
        return Difference(layer=layer, largest=float("inf"), relative=float("inf"), psnr_db=float("-inf"))
    mean_square = float(np.square(error).mean()) / peak**2
    psnr_db = min(EQUAL_DB, -10 * np.log10(mean_square)) if mean_square else EQUAL_DB
    return Difference(layer=layer, largest=largest, relative=largest / peak, psnr_db=float(psnr_db))


def _worse(one: Difference | None, other: Difference) -> Difference:
    if one is None:
        return other
    return Difference(
        layer=other.layer,
        largest=max(one.largest, other.largest),
        relative=max(one.relative, other.relative),
        psnr_db=min(one.psnr_db, other.psnr_db),
    )


def _save(
    folder: Path, name: str, inputs: Sequence[Feeds], outputs: Sequence[Mapping[str, NDArray[Any]]]
) -> None:
    results = RunResults()
    results.add(list(outputs), runner_name=FP32)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            save_json([dict(feeds) for feeds in inputs], str(folder / f"{name}.inputs.json"))
            results.save(str(folder / f"{name}.{FP32}.json"))
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from error
