"""How much work a graph is: multiplications, counted from the graph itself, and bytes.

One MAC is one multiplication and one addition. Only convolutions and matrix products are counted:
the rest is far below one percent of a model's arithmetic.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import onnx

from benchmarks.shapes import Shape, known_shapes
from psp_rt import EngineFile


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one run of a graph needs at least."""

    macs: int
    weight_bytes: int  # read once in each run, however large the batch


def graph_work(engine: EngineFile, name: str, *, batch: int) -> Work:
    """Count the work of a graph of an engine."""
    with engine.view(f"{name}.onnx") as data:
        model = onnx.load_model_from_string(bytes(data))
    constants = model.graph.initializer
    sizes = (prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
             for tensor in constants)  # fmt: skip
    return Work(macs=count_macs(model, batch=batch), weight_bytes=sum(sizes))


def count_macs(model: onnx.ModelProto, *, batch: int) -> int:
    """Count the multiplications of convolutions and matrix products, at one batch size.

    Raises:
        ValueError: A shape is unknown, so the count would be too low.
    """
    shapes = known_shapes(model, batch=batch)
    total = 0
    for node in model.graph.node:
        count = _COUNTS.get(node.op_type)
        if count is None:
            continue
        try:
            total += count(node, shapes)
        except KeyError as error:
            raise ValueError(f"the shape of {error} is unknown; {node.name} cannot be counted") from None
    return total


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
