"""The shape of every tensor of a graph, at one batch size.

ONNX's own inference gives up where a graph computes a shape by more than a few operators, as tracing
writes ``expand``; so such computations, on a handful of whole numbers, are done here in between.
"""

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

Shape = tuple[int, ...]
Constants = dict[str, np.ndarray]
MAX_VALUES = 64  # of a tensor that may be a shape


def known_shapes(model: onnx.ModelProto, *, batch: int) -> dict[str, Shape]:
    """Return the shapes whose sizes are all known; the first axis of every input is the batch."""
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    for port in graph.graph.input:
        port.type.tensor_type.shape.dim[0].dim_value = batch
    for port in graph.graph.output:  # a dynamic batch that is declared would win over a known one
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
    """Replace nodes that compute with known shapes by their results; say whether there were any."""
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
    """Return the result of a node that computes with shapes, if its inputs are known."""
    if node.op_type == "Shape" and node.input[0] in shapes and not node.attribute:
        return np.array(shapes[node.input[0]], np.int64)
    if node.op_type == "Constant" or (node.input and all(name in constants for name in node.input)):
        feeds = {name: constants[name] for name in node.input}
        (values,) = ReferenceEvaluator(node).run(None, feeds)
        array = np.asarray(values)
        if array.size <= MAX_VALUES and array.dtype.kind in "ib":
            return array
    return None
