"""Measure how large the numbers in a graph become, and emulate its FP16 form on a CPU.

ONNX Runtime has no FP16 kernels for most operators on a CPU. It computes an FP16 graph in FP32 and drops
the casts in between (version 1.32 computes the fourth power of 70000 as 2.4e19, although FP16 ends at
65504), so its result says nothing about FP16. It does keep casts to FP16 and back in an FP32 graph, even
with all optimizations (tests/export/test_fp16.py). `emulated` therefore returns an FP32 graph that rounds
every number that the FP16 graph stores in FP16.

Sums inside one operator stay in FP32, as in tensor core tactics that accumulate in FP32. Tactics that
accumulate in FP16 are not emulated.
"""

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
    """Run a graph on several inputs and return all of its floating-point tensors, including constants.

    The graph computes in FP32. For each tensor it returns two small outputs, the largest magnitude and
    the shape, so that the maps themselves can be freed after their last use.

    Args:
        path: The graph; its weights are in the same folder.
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
                largest = float(np.maximum(before, size))  # keeps NaN, unlike max()
                found[name] = Activation(largest=largest, shape=tuple(map(int, shape)))
        return found
    finally:
        probe.unlink()


def magnitude(array: NDArray[np.generic]) -> float:
    """Return the largest absolute value, or NaN if there is one."""
    return float(np.abs(array).max(initial=0))


def float_tensors(model: onnx.ModelProto) -> dict[str, int]:
    """Return the type of every FP32 or FP16 tensor that a node computes."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    made = {name for node in graph.node for name in node.output}
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.output]}
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16)
    return {name: kind for name, kind in types.items() if name in made and kind in floats}


def constant_arrays(model: onnx.ModelProto, folder: Path) -> dict[str, NDArray[np.generic]]:
    """Return the floating-point constants: initializers, Constant nodes, and casts of either.

    Constants in a weights file are mapped, not read.
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
    """Return the model with the magnitude and the shape of each tensor as additional outputs."""
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


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return an FP32 graph that computes what an FP16 graph computes."""
    half = {name for name, kind in float_tensors(model).items() if kind == TensorProto.FLOAT16}
    return _in_fp32(model, rounded=half)


def unrounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return an FP32 graph that computes what an FP16 graph would without rounding its tensors.

    Small constants were rounded when the FP16 graph was written.
    """
    return _in_fp32(model, rounded=set())


def _in_fp32(model: onnx.ModelProto, *, rounded: set[str]) -> onnx.ModelProto:
    """Return an FP16 graph in FP32, with some tensors rounded to FP16."""
    # FP16 constants become FP32 by a cast.
    nodes = []
    stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    for name in sorted(stored):
        nodes.append(helper.make_node("Cast", [name], [f"{name}|fp32"], to=TensorProto.FLOAT))

    # Each of these tensors is computed in FP32, cast to FP16 and back.
    for original in model.graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        for position, name in enumerate(node.input):
            if name in stored:
                node.input[position] = f"{name}|fp32"
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT16:
            node.attribute[0].i = TensorProto.FLOAT
        names = rounded.intersection(node.output)
        for position, name in enumerate(node.output):
            if name in names:
                node.output[position] = f"{name}|exact"
        nodes.append(node)
        for name in sorted(names):
            nodes.append(
                helper.make_node("Cast", [f"{name}|exact"], [f"{name}|fp16"], to=TensorProto.FLOAT16)
            )
            nodes.append(helper.make_node("Cast", [f"{name}|fp16"], [name], to=TensorProto.FLOAT))

    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    del result.graph.value_info[:]
    result.graph.node.extend(nodes)
    return result


def emulating_session(path: Path) -> onnxruntime.InferenceSession:
    """Return a session that emulates an FP16 graph; its weights are in the same folder."""
    model = emulated(onnx.load(path, load_external_data=False))
    temporary = path.with_name(f"emulated-{path.name}")  # in the folder of the weights
    temporary.write_bytes(model.SerializeToString())
    try:
        return onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
    finally:
        temporary.unlink()


def psnr_db(found: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    """Return the peak signal-to-noise ratio of pictures in gray levels; 99 dB if they are equal."""
    error = float(np.square(found.astype(np.float64) - expected.astype(np.float64)).mean())
    return 99.0 if error < 1e-5 else float(10 * np.log10(255**2 / error))
