"""How large the numbers in a graph become on given inputs, and what shapes they have."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Feeds = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True)
class Activation:
    """One floating-point tensor of a graph: its largest magnitude over all inputs, and its last shape."""

    largest: float
    shape: tuple[int, ...]


def measure(path: Path, inputs: Iterable[Feeds]) -> dict[str, Activation]:
    """Run a graph on several inputs and return every floating-point tensor in it, constants included.

    Each tensor gets two small outputs, its largest magnitude and its shape, so that no map outlives
    its last use. The graph is computed in FP32.

    Args:
        path: The graph; its weights lie in the same folder.
        inputs: Batches, each under the names of the graph's inputs.
    """
    model = onnx.load(path, load_external_data=False)
    constants = constant_arrays(model, path.parent)
    names = [name for name in float_tensors(model) if name not in constants]
    probe = path.with_name(f"probe-{path.name}")
    probe.write_bytes(_probed(model, names).SerializeToString())
    try:
        session = onnxruntime.InferenceSession(probe, providers=["CPUExecutionProvider"])
        found = {name: Activation(largest=magnitude(array), shape=array.shape)
                 for name, array in constants.items()}  # fmt: skip
        for feeds in inputs:
            results = session.run(_outputs(names), dict(feeds))
            for name, size, shape in zip(names, results[::2], results[1::2], strict=True):
                before = found[name].largest if name in found else 0.0
                largest = float(np.maximum(before, size))  # keeps a NaN, as max() would not
                found[name] = Activation(largest=largest, shape=tuple(map(int, shape)))
        return found
    finally:
        probe.unlink()


def magnitude(array: NDArray[np.generic]) -> float:
    """Return the largest absolute value, or NaN where there is one."""
    return float(np.abs(array).max(initial=0))


def float_tensors(model: onnx.ModelProto) -> dict[str, int]:
    """Return the type of every tensor that a node makes, where it is FP32 or FP16."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    made = {name for node in graph.node for name in node.output}
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.output]}
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16)
    return {name: kind for name, kind in types.items() if name in made and kind in floats}


def constant_arrays(model: onnx.ModelProto, folder: Path) -> dict[str, NDArray[np.generic]]:
    """Return the floating-point constants: initializers, Constant nodes, and casts of either.

    Those in a weights file are mapped, not read.
    """
    arrays = {tensor.name: _array(tensor, folder) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            arrays[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type in ("Cast", "Identity") and node.input[0] in arrays:
            arrays[node.output[0]] = arrays[node.input[0]]
    return {name: array for name, array in arrays.items() if array.dtype.kind == "f"}


def _array(tensor: TensorProto, folder: Path) -> NDArray[np.generic]:
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    place = {entry.key: entry.value for entry in tensor.external_data}
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.memmap(
        folder / place["location"], kind, "r", offset=int(place["offset"]), shape=tuple(tensor.dims)
    )


def _probed(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """Return the model with the size and the shape of each tensor as its outputs."""
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    for name in names:
        nodes = [
            helper.make_node("Abs", [name], [f"{name}|size"]),
            helper.make_node("ReduceMax", [f"{name}|size"], [f"{name}|largest"], keepdims=0),
            helper.make_node("Shape", [name], [f"{name}|shape"]),
        ]
        probed.graph.node.extend(nodes)
        probed.graph.output.append(helper.make_tensor_value_info(f"{name}|largest", TensorProto.FLOAT, []))
        probed.graph.output.append(helper.make_tensor_value_info(f"{name}|shape", TensorProto.INT64, None))
    return probed


def _outputs(names: Iterable[str]) -> list[str]:
    return [f"{name}|{what}" for name in names for what in ("largest", "shape")]
