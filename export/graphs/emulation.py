"""FP16 on a CPU: a graph in FP32 that rounds every number that its FP16 graph keeps in FP16.

ONNX Runtime has no FP16 kernels for most operators on a CPU. Given an FP16 graph it computes in FP32 and
drops the casts in between (measured, version 1.32: the fourth power of 70000 comes out as 2.4e19, where
FP16 ends at 65504), so its result says nothing. Casts that stand in an FP32 graph, to FP16 and back, it
keeps, even with all optimisations (tests/test_fp16.py).

Sums inside one operator are kept in FP32, as tensor cores do in the tactics that accumulate in FP32. A
tactic that accumulates in FP16 is not emulated.
"""

from pathlib import Path

import onnx
import onnxruntime
from onnx import TensorProto, helper

from export.graphs.activations import float_tensors


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return an FP32 graph that computes what an FP16 graph does."""
    half = {name for name, kind in float_tensors(model).items() if kind == TensorProto.FLOAT16}
    nodes = []
    stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    for name in sorted(stored):
        nodes.append(helper.make_node("Cast", [name], [f"{name}|fp32"], to=TensorProto.FLOAT))
    for original in model.graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        for position, name in enumerate(node.input):
            if name in stored:
                node.input[position] = f"{name}|fp32"
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT16:
            node.attribute[0].i = TensorProto.FLOAT
        rounded = half.intersection(node.output)
        for position, name in enumerate(node.output):
            if name in rounded:
                node.output[position] = f"{name}|exact"
        nodes.append(node)
        for name in sorted(rounded):
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


def session(path: Path) -> onnxruntime.InferenceSession:
    """Return a session that emulates an FP16 graph; its weights lie in the same folder."""
    model = emulated(onnx.load(path, load_external_data=False))
    beside = path.with_name(f"emulated-{path.name}")
    beside.write_bytes(model.SerializeToString())
    try:
        return onnxruntime.InferenceSession(beside, providers=["CPUExecutionProvider"])
    finally:
        beside.unlink()
