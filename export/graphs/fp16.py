"""Write FP16 into a graph: the same nodes, with casts where the precision changes.

TensorRT 10 and 11 take each tensor's type from the graph (strong typing) and have no flag that would
choose one. What is FP16: convolutions, and what is done to their maps until the next one. What stays
FP32, because it is small and its range or its error is not:

    mapping         whole (it has no FP16 graph)
    styles          affine layers, their normalisation, demodulation
    colours         the sum over all resolutions, its upsampling, clamp, rounding
    encoder         scaling of the input, batch norms that precede a convolution, the gates of
                    squeeze-and-excite with their means, the linear layers, the latent average
    overflow        every node that reads or writes a number beyond `LIMIT` on the inputs measured

Both graphs share one file of weights. Where it holds FP32, the FP16 graph casts what it uses; where it
holds FP16, the FP16 graph reads it as it is. Either way no weight is stored twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.graphs.activations import Activation, float_tensors

MARGIN = 4  # how far below FP16's largest number measured activations must stay
LIMIT = float(np.finfo(np.float16).max) / MARGIN
CONVOLUTIONS = ("Conv", "ConvTranspose")
FOLLOWING = ("Add", "Mul", "LeakyRelu", "PRelu", "Relu", "Clip", "Slice", "Resize", "Reshape", "Flatten")
COLOURS = "/to_rgb"  # the modules of `graphs.GeneratorGraph` whose result is a picture
ANY_TYPE = ("Shape", "Cast")  # read either type


@dataclass(frozen=True, kw_only=True)
class Precisions:
    """What a graph computes in FP16.

    Args:
        nodes: Indices of the nodes that compute in FP16.
        moved: Names of those that would, but for a number that is too large.
    """

    nodes: frozenset[int]
    moved: tuple[str, ...]


def decide(model: onnx.ModelProto, activations: Mapping[str, Activation]) -> Precisions:
    """Choose the precision of every node of an FP32 graph.

    Args:
        model: The graph.
        activations: Every floating-point tensor of it, as `activations.measure` returns them.
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
    """Say whether a node would compute in FP16 if all numbers fitted."""
    if node.op_type == "MatMul":  # of a map, by the weights of this sample's style
        return any(name in half for name in node.input) and not constants & set(node.input)
    if node.name.startswith(COLOURS) and node.op_type != "Reshape":
        return False
    if node.op_type in CONVOLUTIONS:  # on one pixel, it is the gate of a squeeze-and-excite block
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


def write(path: Path, activations: Mapping[str, Activation]) -> tuple[Path, tuple[str, ...]]:
    """Write NAME.fp16.onnx beside NAME.onnx; return its path and the nodes moved to FP32."""
    model = onnx.load(path, load_external_data=False)
    precisions = decide(model, activations)
    target = path.with_name(f"{path.stem}.fp16.onnx")
    target.write_bytes(convert(model, precisions).SerializeToString())
    onnx.checker.check_model(target, full_check=True)
    return target, precisions.moved


class _Writer:
    """Goes through the nodes in order and puts a cast before the first use in another precision."""

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
            first_only = original.op_type == "Resize" and position > 0  # its scales are always FP32
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
    """Remove what nothing reads any more: FP32 forms of what is now read as FP16."""
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
