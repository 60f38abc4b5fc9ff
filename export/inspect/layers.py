"""The layers of a graph: precision, shape, parameters and multiplications.

A layer is a node that computes at run time. Constants are not layers, and neither are casts of stored
weights, which runtimes fold when they load the graph. One MAC is one multiplication and one addition. Only
convolutions and matrix products are counted; the rest is far below one percent of the arithmetic.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

Shape = tuple[int, ...]
Constants = dict[str, np.ndarray]
MAX_VALUES = 64  # of a tensor that may be a shape
NAMES = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16"}
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One node of a graph.

    Args:
        name: The node's name, or its output's if it has none.
        operator: The ONNX operator.
        output: The tensor that it computes.
        precision: The output's type: "fp32", "fp16", "int64", "uint8"; "?" if unknown.
        shape: The output's shape at the requested batch; empty if unknown.
        parameters: Stored numbers that it reads and no earlier layer reads.
        macs: Multiplications.
        island: It computes in FP32 in a graph that is otherwise FP16.
    """

    name: str
    operator: str
    output: str
    precision: str
    shape: Shape
    parameters: int
    macs: int
    island: bool


def read_layers(model: onnx.ModelProto, *, batch: int) -> list[Layer]:
    """Return the layers of a graph in their order.

    Raises:
        ValueError: The graph's shapes cannot be inferred.
    """
    try:
        shapes = known_shapes(model, batch=batch)
        precisions = _precisions(model)
    except onnx.shape_inference.InferenceError as error:
        raise ValueError(f"its shapes do not fit together: {error}") from None
    mixed = "fp16" in precisions.values()
    stored, counted = _stored(model.graph), set[str]()
    layers = []
    for node in model.graph.node:
        if node.op_type == "Constant" or node.output[0] in stored:
            continue
        precision = precisions.get(node.output[0], "?")
        new = {stored[name] for name in node.input if name in stored} - counted
        counted |= new
        layers.append(
            Layer(
                name=node.name or node.output[0],
                operator=node.op_type,
                output=node.output[0],
                precision=precision,
                shape=shapes.get(node.output[0], ()),
                parameters=sum(prod(shapes[name]) for name in new),
                macs=node_macs(node, shapes),
                island=mixed and precision == "fp32" and node.op_type != "Cast",
            )
        )
    return layers


def _stored(graph: onnx.GraphProto) -> dict[str, str]:
    """Return the initializer behind each tensor that is a float initializer or the cast of one."""
    stored = {tensor.name: tensor.name for tensor in graph.initializer if tensor.data_type in FLOATS}
    for node in graph.node:
        if node.op_type in ("Cast", "Identity") and node.input[0] in stored:
            stored[node.output[0]] = stored[node.input[0]]
    return stored


def _precisions(model: onnx.ModelProto) -> dict[str, str]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    kinds = {
        value.name: TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        for value in [*graph.value_info, *graph.output]
    }
    return {name: NAMES.get(kind, kind.lower()) for name, kind in kinds.items()}


def by_operator(layers: Sequence[Layer]) -> Mapping[str, list[Layer]]:
    """Return the layers of each operator, sorted by multiplications, then by number of layers."""
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        found.setdefault(layer.operator, []).append(layer)
    order = sorted(found, key=lambda name: (-sum(layer.macs for layer in found[name]), -len(found[name])))
    return {name: found[name] for name in order}


def count_macs(model: onnx.ModelProto, *, batch: int) -> int:
    """Count the multiplications of convolutions and matrix products, at one batch size.

    Raises:
        ValueError: A shape is unknown, so the count would be too low.
    """
    shapes = known_shapes(model, batch=batch)
    return sum(node_macs(node, shapes) for node in model.graph.node)


def node_macs(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Count the multiplications of one node; 0 unless it is a convolution or a matrix product.

    Raises:
        ValueError: One of its shapes is unknown.
    """
    count = _COUNTS.get(node.op_type)
    try:
        return 0 if count is None else count(node, shapes)
    except KeyError as error:
        raise ValueError(f"the shape of {error} is unknown; {node.name} cannot be counted") from None


def _conv(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Each output value sums over the kernel [O, I / groups, k, k]."""
    return prod(shapes[node.output[0]]) * prod(shapes[node.input[1]][1:])


def _conv_transpose(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Each input value is spread by the kernel [I, O / groups, k, k]; cropped outputs count too."""
    return prod(shapes[node.input[0]]) * prod(shapes[node.input[1]][1:])


def _matmul(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    return prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


def _gemm(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else 1]


_COUNTS: dict[str, Callable[[onnx.NodeProto, Mapping[str, Shape]], int]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "Gemm": _gemm,
}


def known_shapes(model: onnx.ModelProto, *, batch: int) -> dict[str, Shape]:
    """Return the shapes of all tensors that have known sizes, at one batch size.

    ONNX's own inference gives up if a graph computes a shape by several operators, as tracing writes
    ``expand``. These computations, on a few integers, are therefore folded in between.
    """
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    for port in graph.graph.input:
        port.type.tensor_type.shape.dim[0].dim_value = batch
    for port in graph.graph.output:  # a declared dynamic batch would take precedence over the known one
        port.type.tensor_type.ClearField("shape")
    while True:
        graph = onnx.shape_inference.infer_shapes(graph, data_prop=True)
        shapes = _inferred(graph)
        if not _fold(graph, shapes):
            return shapes


def _inferred(model: onnx.ModelProto) -> dict[str, Shape]:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    return shapes


def _fold(model: onnx.ModelProto, shapes: dict[str, Shape]) -> bool:
    """Replace nodes that compute with known shapes by their results; return whether there were any."""
    constants = _small_constants(model)
    folded = []
    for node in model.graph.node:
        values = _result(node, constants, shapes)
        if values is not None:
            constants[node.output[0]] = values
            model.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
            folded.append(node)
    for node in folded:
        model.graph.node.remove(node)
    return bool(folded)


def _small_constants(model: onnx.ModelProto) -> Constants:
    whole = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL)
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type in whole and tensor.data_location != onnx.TensorProto.EXTERNAL
    }


def _result(node: onnx.NodeProto, constants: Constants, shapes: dict[str, Shape]) -> np.ndarray | None:
    """Return the result of a node that computes with shapes if its inputs are known."""
    if node.op_type == "Shape" and node.input[0] in shapes and not node.attribute:
        return np.array(shapes[node.input[0]], np.int64)
    if node.op_type == "Constant" or (node.input and all(name in constants for name in node.input)):
        feeds = {name: constants[name] for name in node.input}
        (values,) = ReferenceEvaluator(node).run(None, feeds)
        array = np.asarray(values)
        if array.size <= MAX_VALUES and array.dtype.kind in "ib":
            return array
    return None
