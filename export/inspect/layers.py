"""What a graph is made of: its layers, their precision, parameters and multiplications.

A layer is a node that computes at run time. Constants are none, and neither are casts of stored weights,
which runtimes fold when they load the graph.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx
from onnx import TensorProto

from export.inspect.macs import node_macs
from export.inspect.shapes import Shape, known_shapes

NAMES = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16"}
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One node of a graph.

    Args:
        name: The node's, or of its first output where it has none.
        operator: ONNX's name for what it does.
        output: The tensor that it makes.
        precision: Of that tensor: "fp32", "fp16", "int64", "uint8"; "?" where nothing says.
        shape: Of that tensor, at the batch asked for; empty where it is not known.
        parameters: Stored numbers that it reads and no layer before it does.
        macs: Multiplications.
        island: It computes in FP32 in a graph that is FP16 elsewhere.
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
        ValueError: The graph's shapes cannot be told.
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
    """Return the initializer of floats behind each tensor that is one, or the cast of one."""
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
    """Return the layers of each operator: first by multiplications, then by how many there are."""
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        found.setdefault(layer.operator, []).append(layer)
    order = sorted(found, key=lambda name: (-sum(layer.macs for layer in found[name]), -len(found[name])))
    return {name: found[name] for name in order}
