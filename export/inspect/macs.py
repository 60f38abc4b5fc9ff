"""How many multiplications a graph takes, counted from the graph itself.

One MAC is one multiplication and one addition. Only convolutions and matrix products are counted:
the rest is far below one percent of a model's arithmetic.
"""

from collections.abc import Callable, Mapping
from math import prod

import onnx

from export.inspect.shapes import Shape, known_shapes


def count_macs(model: onnx.ModelProto, *, batch: int) -> int:
    """Count the multiplications of convolutions and matrix products, at one batch size.

    Raises:
        ValueError: A shape is unknown, so the count would be too low.
    """
    shapes = known_shapes(model, batch=batch)
    return sum(node_macs(node, shapes) for node in model.graph.node)


def node_macs(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Count those of one node; 0 for all others than convolutions and matrix products.

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
    """Each input value is spread by the kernel [I, O / groups, k, k]; what falls outside counts too."""
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
