"""What a graph of an engine may be made of.

A graph from a stranger reaches the runtimes' native code, which trusts it further than it should:
operators with too few inputs crashed OpenVINO, cycles and chains of thousands of nodes kept it busy
for minutes, and so did an operator set of the year 3000. Exported models need none of that, so a
graph keeps to the operators below, in an order in which every input is made before it is used.

Not covered: integers that overflow when constants are folded (the smallest int64 divided by -1 ends
the process), and sizes that double from node to node until the memory is full.
"""

from __future__ import annotations

MAX_NODES = 2000  # the official encoder at 256 pixels and the generator at 1024 have 595 and 687
OPERATOR_SETS = range(7, 31)  # exports write 17

# The fewest inputs of each operator. Beside what exports contain today: what others' exporters and
# other versions of torch make of the same networks.
LEAST_INPUTS = {
    **dict.fromkeys(("Constant", "RandomNormal"), 0),
    **dict.fromkeys(
        (
            "Abs", "AveragePool", "Cast", "CastLike", "Clip", "Concat", "ConstantOfShape", "DepthToSpace",
            "Exp", "Flatten", "Floor", "GlobalAveragePool", "GlobalMaxPool", "Identity", "LeakyRelu", "Log",
            "Max", "MaxPool", "Min", "Neg", "RandomNormalLike", "Reciprocal", "ReduceL2", "ReduceMax",
            "ReduceMean", "ReduceSum", "ReduceSumSquare", "Relu", "Resize", "Round", "Shape", "Sigmoid",
            "Softmax", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sum", "Tanh", "Transpose",
        ),
        1,
    ),
    **dict.fromkeys(
        (
            "Add", "And", "Conv", "ConvTranspose", "Div", "Equal", "Expand", "Gather", "GatherElements",
            "Gemm", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "MatMul", "Mod", "Mul", "Or", "Pad",
            "Pow", "PRelu", "Reshape", "Sub", "Tile", "Unsqueeze",
        ),
        2,
    ),
    **dict.fromkeys(("InstanceNormalization", "OneHot", "Range", "Slice", "Where"), 3),
    "BatchNormalization": 5,
}  # fmt: skip


def fault_of_node(operator: str, inputs: list[str], known: set[str]) -> str | None:
    """Return what is wrong with a node whose graph has made the ``known`` values so far, or None."""
    least = LEAST_INPUTS.get(operator)
    if least is None:
        return f"uses the operator {operator[:60]!r}, which the models of this format do not need"
    if len(inputs) < least or not all(inputs[:least]):
        return f"gives {operator} {len([name for name in inputs if name])} inputs; expected at least {least}"
    unmade = next((name for name in inputs if name and name not in known), None)
    if unmade is not None:
        return f"uses {unmade[:60]!r} in {operator} before it is made, or in a circle"
    return None
