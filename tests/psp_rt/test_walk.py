"""Graphs that would end the process or fill the memory are refused before a runtime sees them."""

from __future__ import annotations

import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from psp_rt import EngineFile, FormatError
from tests.models import tiny_engine

MIN = -(2**63)


def integers(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def floats(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def refusal(tmp_path, nodes, constants) -> str:
    """Return why an engine is refused whose mapping runs some nodes beside its own."""
    files = tiny_engine.members()
    model = onnx.load_model_from_string(files["mapping.onnx"])
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(constants)
    files["mapping.onnx"] = model.SerializeToString()
    path = tiny_engine.write_raw(tmp_path / "bad.engine", files)
    start = time.process_time()
    with EngineFile.open(path) as engine, pytest.raises(FormatError) as caught:
        engine.graph("mapping")
    assert time.process_time() - start < 0.5
    return str(caught.value)


def node(operator: str, inputs: list[str], output: str = "x", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], **attributes)


def doubled(operator: str) -> list[onnx.NodeProto]:
    """Return a chain that doubles its data 28 times."""
    made = [node("Unsqueeze", ["z", "first"], "x0")]
    for at in range(28):
        inputs = [f"x{at}", f"x{at}"] if operator == "Concat" else [f"x{at}", "twice"]
        more = {"axis": 0} if operator == "Concat" else {}
        made.append(node(operator, inputs, f"x{at + 1}", **more))
    return made


ONE, NONE = integers("one", 1), integers("none", 0)
AXES = integers("axes", 1, 2)
COMPUTED = node("Cast", ["z"], "computed", to=TensorProto.INT64)
BOMBS = {
    "a gigabyte of zeros": ([node("ConstantOfShape", ["big"])], [integers("big", 1 << 30)]),
    "doubled by Concat": (doubled("Concat"), [integers("first", 0)]),
    "doubled by Tile": (doubled("Tile"), [integers("first", 0), integers("twice", 2, 1, 1)]),
    "expanded": ([node("Expand", ["z", "big"])], [integers("big", 1 << 20, 1 << 10, 8)]),
    "padded": ([node("Pad", ["z", "pads"])], [integers("pads", 0, 0, 0, 1 << 30)]),
    "resized": (
        [
            node("Unsqueeze", ["z", "axes"], "image"),
            node("Resize", ["image", "", "", "sizes"], mode="linear"),
        ],
        [AXES, integers("sizes", 1, 1, 30000, 30000)],
    ),
}
DEATHS = {
    "the smallest number by -1": (
        [node("Div", ["low", "minus"])],
        [integers("low", MIN), integers("minus", -1)],
    ),
    "a division by zero": ([node("Div", ["one", "none"])], [ONE, NONE]),
    "a remainder by zero": ([node("Mod", ["one", "none"])], [ONE, NONE]),
    "a range without a step": (
        [node("Range", ["none", "one", "none"])],
        [ONE, NONE],
    ),
    "an index that is computed": (
        [COMPUTED, node("Gather", ["z", "computed"])],
        [],
    ),
    "an index out of range": ([node("Gather", ["z", "far"])], [integers("far", 99)]),
    "an odd rank of slopes": ([node("PRelu", ["z", "slope"])], [floats("slope", 2, 3, 4, 5)]),
    "a filter that is too wide": (
        [node("Unsqueeze", ["z", "axes"], "image"), node("ConvTranspose", ["image", "filter"])],
        [AXES, floats("filter", 7, 1, 3, 3)],
    ),
    "pads that are computed": ([COMPUTED, node("Pad", ["z", "computed"])], []),
    "bounds of another type": ([node("Clip", ["z", "low"])], [integers("low", 0)]),
    "a slice without a step": (
        [node("Slice", ["z", "none", "one", "none", "none"])],
        [NONE, ONE],
    ),
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_graph_that_would_fill_the_memory_is_refused(tmp_path, case):
    assert "mapping.onnx" in refusal(tmp_path, *BOMBS[case])


@pytest.mark.parametrize("case", DEATHS)
def test_a_graph_that_ended_the_process_is_refused(tmp_path, case):
    assert "mapping.onnx" in refusal(tmp_path, *DEATHS[case])


def test_shapes_that_are_computed_from_constants_are_followed(tmp_path):
    """Exporters write a batch's shape as Shape, Gather, Concat and Reshape."""
    files = tiny_engine.members()
    model = onnx.load_model_from_string(files["mapping.onnx"])
    nodes = [
        node("Shape", ["w"], "shape"),
        node("Gather", ["shape", "none"], "batch", axis=0),
        node("Concat", ["batch", "rest"], "wanted", axis=0),
        node("Reshape", ["w", "wanted"], "again"),
    ]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([integers("none", 0), integers("rest", 2, 4)])
    files["mapping.onnx"] = model.SerializeToString()
    with EngineFile.open(tiny_engine.write_raw(tmp_path / "good.engine", files)) as engine:
        assert engine.graph("mapping")
