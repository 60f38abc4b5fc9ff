"""Write the FP16 graphs of an engine, with precision chosen by measured activations.

TensorRT 10 and 11 take each tensor's type from the graph (strong typing) and have no flag for FP16. So an
FP16 graph has the nodes of an FP32 graph (`export.graphs.gpu`), with casts where the precision changes.
Convolutions compute in FP16, and so does what follows on their maps until the next convolution. The rest
stays in FP32, because it is small and sensitive in range or error:

    mapping         whole (it has no FP16 graph)
    styles          affine layers, their normalization, demodulation
    colors          the sum over all resolutions, its upsampling, clamp, rounding
    encoder         scaling of the input, batch norms before a convolution, the gates of
                    squeeze-and-excite with their means, the linear layers, the latent average
    overflow        every node that reads or writes a number beyond `LIMIT` on the samples

Both graphs share one weights file. If it holds FP32, the FP16 graph casts what it uses; if it holds FP16,
the FP16 graph reads it directly. No weight is stored twice.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.graphs.activations import Activation, Feeds, emulating_session, float_tensors, measure, psnr_db
from export.pictures import files_of
from psp_rt import InputError, InputSpec, OutputError, Translator
from psp_rt.images import read_pictures

MARGIN = 4  # how far below FP16's largest number measured activations must stay
LIMIT = float(np.finfo(np.float16).max) / MARGIN
CONVOLUTIONS = ("Conv", "ConvTranspose")
FOLLOWING = (
    *("Add", "Sub", "Mul", "LeakyRelu", "PRelu", "Relu", "Clip"),
    *("Slice", "Concat", "Resize", "Reshape", "Flatten"),
)
COLORS = "/to_rgb"  # modules of `GeneratorGraph` whose result is a picture
ANY_TYPE = ("Shape", "Cast")  # read either type


@dataclass(frozen=True, kw_only=True)
class Precisions:
    """Which nodes of a graph compute in FP16.

    Args:
        nodes: Indices of the nodes that compute in FP16.
        moved: Names of nodes that stay in FP32 only because a number is too large.
    """

    nodes: frozenset[int]
    moved: tuple[str, ...]


def decide(model: onnx.ModelProto, activations: Mapping[str, Activation]) -> Precisions:
    """Choose the precision of every node of an FP32 graph.

    Args:
        model: The graph.
        activations: All floating-point tensors of the graph, as `activations.measure` returns them.
    """
    constants = _constants(model.graph)
    half: set[str] = set()
    nodes, moved = [], []
    for index, node in enumerate(model.graph.node):
        if not _suits(node, half, constants, activations):
            continue
        read = node.input[:1] if node.op_type == "Resize" else node.input
        if any(activations[name].largest > LIMIT for name in [*read, *node.output] if name in activations):
            moved.append(node.name)
            continue
        nodes.append(index)
        half.update(node.output)
    return Precisions(nodes=frozenset(nodes), moved=tuple(moved))


def _suits(
    node: onnx.NodeProto, half: set[str], constants: set[str], activations: Mapping[str, Activation]
) -> bool:
    """Return whether a node computes in FP16 if its numbers fit."""
    if node.op_type == "MatMul" or (node.op_type == "Mul" and node.name.startswith(COLORS)):
        # a map times the weights of this sample's style
        return any(name in half for name in node.input) and not constants & set(node.input)
    if node.name.startswith(COLORS) and node.op_type != "Reshape":
        return False
    if node.op_type in CONVOLUTIONS:  # on a single pixel it is the gate of a squeeze-and-excite block
        return bool(np.prod(activations[node.input[0]].shape[2:]) > 1)
    return node.op_type in FOLLOWING and any(name in half for name in node.input)


def _constants(graph: onnx.GraphProto) -> set[str]:
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" or (node.op_type == "Cast" and node.input[0] in constants):
            constants.add(node.output[0])
    return constants


def convert(model: onnx.ModelProto, precisions: Precisions) -> onnx.ModelProto:
    """Return the graph with its FP16 nodes and the casts between the two precisions."""
    writer = _Writer(model, precisions)
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    del converted.graph.node[:]
    converted.graph.node.extend(writer.nodes)
    converted.graph.initializer.extend(writer.initializers)
    _drop_unused(converted.graph)
    return converted


class _Writer:
    """Goes through the nodes in order and inserts a cast before the first use in another precision."""

    def __init__(self, model: onnx.ModelProto, precisions: Precisions) -> None:
        graph = model.graph
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._floats = float_tensors(model) | {
            tensor.name: tensor.data_type
            for tensor in graph.initializer
            if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
        }
        self._half = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16}
        self._inline = {
            tensor.name: tensor
            for tensor in graph.initializer
            if tensor.data_location != TensorProto.EXTERNAL and tensor.data_type == TensorProto.FLOAT
        }
        self._as_half: dict[str, str] = {}
        self._as_single: dict[str, str] = {}
        for index, node in enumerate(graph.node):
            self._add(node, half=index in precisions.nodes)

    def _add(self, original: onnx.NodeProto, *, half: bool) -> None:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        for position, name in enumerate(original.input):
            first_only = original.op_type == "Resize" and position > 0  # the scales are always FP32
            if name not in self._floats or first_only or (original.op_type in ANY_TYPE and not half):
                continue
            node.input[position] = self._half_of(name) if half else self._single_of(name)
        if half:
            self._half.update(node.output)
        elif node.op_type == "Cast" and node.input[0] in self._half:
            self._as_half[node.output[0]] = node.input[0]  # a weight stored as FP16
        elif node.op_type == "Constant" and node.output[0] in self._floats:
            self._inline[node.output[0]] = node.attribute[0].t
        self.nodes.append(node)

    def _half_of(self, name: str) -> str:
        if name in self._half:
            return name
        if name not in self._as_half:
            self._as_half[name] = f"{name}_as_fp16"
            if name in self._inline:
                values = numpy_helper.to_array(self._inline[name]).astype(np.float16)
                self.initializers.append(numpy_helper.from_array(values, self._as_half[name]))
            else:
                self._cast(name, self._as_half[name], TensorProto.FLOAT16)
        return self._as_half[name]

    def _single_of(self, name: str) -> str:
        if name not in self._half:
            return name
        if name not in self._as_single:
            self._as_single[name] = f"{name}_as_fp32"
            self._cast(name, self._as_single[name], TensorProto.FLOAT)
        return self._as_single[name]

    def _cast(self, source: str, target: str, kind: int) -> None:
        self.nodes.append(helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=kind))


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove what is no longer read: FP32 forms of what is now read as FP16."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(initializers)


SEEDS = (0, 1, 2, 3)  # random styles
MAX_PICTURES = 16  # at full size each takes seconds


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Inputs on which activations are measured, and the FP32 results.

    Args:
        images: Inputs of the encoder [K, H, W, C]; None for a generator alone.
        codes: Codes of the images, then random styles [M, L, D].
        pictures: FP32 pictures of the codes [M, H, W, 3].
    """

    images: NDArray[np.uint8] | None
    codes: NDArray[np.float32]
    pictures: NDArray[np.uint8]


def load_pictures(paths: Sequence[Path], spec: InputSpec | None) -> NDArray[np.uint8] | None:
    """Read pictures as inputs of the encoder; None if there are no paths.

    Args:
        paths: Files, or folders of pictures. The first `MAX_PICTURES` files are used.
        spec: The encoder's input.
    """
    if not paths:
        return None
    if spec is None:
        raise InputError("--pictures are inputs of an encoder, but this is a generator alone; leave them out")
    found = [file for path in paths for file in files_of(path)]
    return read_pictures(found[:MAX_PICTURES], spec, color="rgb").pixels


def sample(engine: Path, images: NDArray[np.uint8] | None) -> Samples:
    """Run the FP32 graphs of an engine on images and on random styles."""
    with Translator(engine, device="cpu", backend="onnxruntime", color="rgb", max_batch=1) as translator:
        codes = [translator.sample(seed)[None] for seed in SEEDS]
        if images is not None:
            shown = images if images.shape[3] == 3 else images[..., 0]
            codes.insert(0, translator.encode(list(shown)))
        together = np.concatenate(codes)
        return Samples(images=images, codes=together, pictures=translator.generate(together))


def add(path: Path, samples: Samples) -> tuple[Path, tuple[str, ...]]:
    """Write NAME.fp16.onnx next to an FP32 graph, NAME.onnx or NAME.SOMETHING.onnx.

    Returns:
        Its path, and the names of the nodes that stay in FP32 because their numbers are too large.

    Raises:
        OutputError: The graph computes NaN or infinity even in FP32.
    """
    name = path.name.partition(".")[0]
    measured = measure(path, _inputs(name, samples))
    broken = [tensor for tensor, found in measured.items() if not np.isfinite(found.largest)]
    if broken:
        raise OutputError(
            f"the {name} computes NaN or infinity even in FP32, in {broken[0]}; nothing was written"
        )
    return write(path, measured)


def write(path: Path, activations: Mapping[str, Activation]) -> tuple[Path, tuple[str, ...]]:
    """Write NAME.fp16.onnx next to an FP32 graph; returns as `add`."""
    model = onnx.load(path, load_external_data=False)
    precisions = decide(model, activations)
    target = path.with_name(f"{path.name.partition('.')[0]}.fp16.onnx")
    target.write_bytes(convert(model, precisions).SerializeToString())
    onnx.checker.check_model(target, full_check=True)
    return target, precisions.moved


def compare(folder: Path, samples: Samples) -> dict[str, float]:
    """Emulate the FP16 graphs of a folder and return the PSNR of their pictures against FP32."""
    generator = emulating_session(folder / "generator.fp16.onnx")

    def generate(codes: NDArray[np.float32]) -> NDArray[np.uint8]:
        return np.concatenate([generator.run(None, dict(feeds))[0] for feeds in styled_inputs(codes)])

    figures = {"fp16_generator_psnr_db": worst_psnr_db(generate(samples.codes), samples.pictures)}
    if samples.images is not None:
        encoder = emulating_session(folder / "encoder.fp16.onnx")
        codes = [encoder.run(None, dict(feeds))[0] for feeds in _inputs("encoder", samples)]
        pictures = generate(np.concatenate(codes))
        figures["fp16_end_to_end_psnr_db"] = worst_psnr_db(pictures, samples.pictures[: len(pictures)])
    return figures


def worst_psnr_db(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio of the worst picture of a batch."""
    return min(psnr_db(one, other) for one, other in zip(found, expected, strict=True))


def _inputs(name: str, samples: Samples) -> Iterator[Feeds]:
    """Yield a graph's inputs one by one, because at full size the maps of a batch are gigabytes."""
    if name == "generator":
        yield from styled_inputs(samples.codes)
    elif samples.images is not None:
        for image in samples.images:
            yield {"image": image[None]}


def styled_inputs(codes: NDArray[np.float32]) -> Iterator[Feeds]:
    """Yield the generator's inputs for codes [M, L, D] without style mixing, one by one."""
    for code in codes:
        yield {
            "codes": code[None],
            "reference": code[None],
            "weights": np.zeros((1, len(code)), np.float32),
        }
