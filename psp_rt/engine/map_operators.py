"""Operators on feature maps and codes: what shape each makes, and what it is refused for."""

from __future__ import annotations

from math import prod

from .values import (
    BOOL,
    FLOAT,
    FLOATS,
    INT32,
    INT64,
    MAX_INTEGER,
    MAX_INTEGERS,
    TYPES,
    UINT8,
    Node,
    Operator,
    Refused,
    Shape,
    Value,
    axis_of,
    broadcast,
    check_count,
    constant_list,
    floating,
    present,
    spread,
)


def _unary(node: Node, inputs: list[Value | None]) -> Value:
    """Element by element, floating point."""
    check_count(node, inputs, 1)
    value = floating(inputs[0])
    return Value(value.dtype, value.shape)


def _identity(node: Node, inputs: list[Value | None]) -> Value:
    check_count(node, inputs, 1)
    value, *_ = present(inputs)
    return value


def _arithmetic(node: Node, inputs: list[Value | None]) -> Value:
    """Two operands: both floating point of one type, or both constants of integers, computed here."""
    check_count(node, inputs, 2)
    first, second = present(inputs)
    shape = broadcast(first.shape, second.shape)
    if first.dtype != second.dtype:
        raise Refused(f"combines the types {first.dtype} and {second.dtype}")
    if first.dtype in FLOATS:
        return Value(first.dtype, shape)
    if first.dtype != INT64 or prod(shape) > MAX_INTEGERS:
        raise Refused("computes with integers")
    return Value(INT64, shape, _computed(node.operator, spread(first, shape), spread(second, shape)))


def _computed(operator: str, first: Shape, second: Shape) -> Shape:
    result = []
    for a, b in zip(first, second, strict=True):
        if operator == "Div" and b <= 0:
            raise Refused("divides integers by zero or less")
        found = {
            "Add": a + b,
            "Sub": a - b,
            "Mul": a * b,
            "Div": abs(a) // max(b, 1) * (1 if a >= 0 else -1),
        }[operator]
        if abs(found) > MAX_INTEGER:
            raise Refused("overflows in integers")
        result.append(found)
    return tuple(result)


def _compare(node: Node, inputs: list[Value | None]) -> Value:
    """Equal, of label ids with constants, or of constants with each other."""
    check_count(node, inputs, 2)
    first, second = present(inputs)
    if first.dtype != second.dtype or first.dtype == BOOL:
        raise Refused(f"compares the types {first.dtype} and {second.dtype}")
    shape = broadcast(first.shape, second.shape)
    content = None
    if first.content is not None and second.content is not None and prod(shape) <= MAX_INTEGERS:
        pairs = zip(spread(first, shape), spread(second, shape), strict=True)
        content = tuple(int(a == b) for a, b in pairs)
    return Value(BOOL, shape, content)


def _where(node: Node, inputs: list[Value | None]) -> Value:
    """A choice between constants, as shapes are computed; or between floating-point tensors."""
    check_count(node, inputs, 3)
    condition, first, second = present(inputs)
    if condition.dtype != BOOL or first.dtype != second.dtype:
        raise Refused("chooses between types")
    shape = broadcast(condition.shape, first.shape, second.shape)
    if first.dtype in FLOATS:
        return Value(first.dtype, shape)
    chosen = zip(spread(condition, shape), spread(first, shape), spread(second, shape), strict=True)
    return Value(INT64, shape, tuple(a if condition else b for condition, a, b in chosen))


def _cast(node: Node, inputs: list[Value | None]) -> Value:
    check_count(node, inputs, 1)
    (value, *_), to = present(inputs), node.number("to", FLOAT)
    if to not in TYPES or (
        to in (INT64, INT32) and value.content is None and value.dtype not in (UINT8, INT64, INT32)
    ):
        raise Refused(f"converts type {value.dtype} to {to}")
    return Value(to, value.shape, value.content if to == INT64 else None)


def _clip(node: Node, inputs: list[Value | None]) -> Value:
    check_count(node, inputs, 1, 3)
    value = floating(inputs[0])
    for bound in inputs[1:]:
        if bound is not None and (bound.dtype != value.dtype or bound.size != 1 or len(bound.shape) > 1):
            raise Refused("has a bound that is not one number")
    return Value(value.dtype, value.shape)


def _prelu(node: Node, inputs: list[Value | None]) -> Value:
    check_count(node, inputs, 2)
    value, slope = floating(inputs[0], 2, 4), floating(inputs[1])
    if len(slope.shape) > len(value.shape) or broadcast(value.shape, slope.shape) != value.shape:
        raise Refused(f"has slopes of {list(slope.shape)} for {list(value.shape)}")
    return Value(value.dtype, value.shape)


def _norm(node: Node, inputs: list[Value | None]) -> Value:
    """BatchNormalization, for inference."""
    check_count(node, inputs, 5)
    value = floating(inputs[0], 2, 4)
    if node.number("training_mode", 0) or any(
        floating(entry).shape != (value.shape[1],) for entry in inputs[1:]
    ):
        raise Refused("does not fit its channels")
    return Value(value.dtype, value.shape)


def _pooled(size: int, kernel: int, stride: int, dilation: int, begin: int, end: int) -> int:
    return (size + begin + end - dilation * (kernel - 1) - 1) // stride + 1


def _spatial(node: Node, kernel: Shape) -> tuple[Shape, Shape, Shape]:
    """Return strides, dilations and pads of a convolution or a pooling."""
    if node.attributes.get("auto_pad", "NOTSET") != "NOTSET":
        raise Refused("pads by itself")
    strides = node.numbers("strides", (1, 1), count=2, low=1, high=64)
    dilations = node.numbers("dilations", (1, 1), count=2, low=1, high=1)
    pads = node.numbers("pads", (0, 0, 0, 0), count=4, low=0, high=max(kernel))
    return strides, dilations, pads


def _conv(node: Node, inputs: list[Value | None]) -> Value:
    check_count(node, inputs, 2, 3)
    value, weight = floating(inputs[0], 4), floating(inputs[1], 4)
    groups = node.number("group", 1)
    outputs, per_group, *kernel = weight.shape
    node.numbers("kernel_shape", kernel, count=2, low=1, high=64)
    if node.attributes.get("kernel_shape", tuple(kernel)) != tuple(kernel) or max(kernel) > 64:
        raise Refused(f"has a kernel of {kernel}")
    if groups < 1 or per_group * groups != value.shape[1] or outputs % groups:
        raise Refused(f"has weights {list(weight.shape)} in {groups} groups for {list(value.shape)}")
    if len(inputs) == 3 and floating(inputs[2], 1).shape != (outputs,):
        raise Refused("has a bias of another length")
    strides, dilations, pads = _spatial(node, tuple(kernel))
    sides = [
        _pooled(value.shape[2 + at], kernel[at], strides[at], dilations[at], pads[at], pads[2 + at])
        for at in (0, 1)
    ]
    return Value(value.dtype, (value.shape[0], outputs, *sides))


def _transposed_conv(node: Node, inputs: list[Value | None]) -> Value:
    check_count(node, inputs, 2, 3)
    value, weight = floating(inputs[0], 4), floating(inputs[1], 4)
    groups = node.number("group", 1)
    given, per_group, *kernel = weight.shape
    if node.attributes.get("kernel_shape", tuple(kernel)) != tuple(kernel) or max(kernel) > 64:
        raise Refused(f"has a kernel of {kernel}")
    if groups < 1 or given != value.shape[1] or given % groups or "output_shape" in node.attributes:
        raise Refused(f"has weights {list(weight.shape)} in {groups} groups for {list(value.shape)}")
    if len(inputs) == 3 and floating(inputs[2], 1).shape != (per_group * groups,):
        raise Refused("has a bias of another length")
    strides, _, pads = _spatial(node, tuple(kernel))
    extra = node.numbers("output_padding", (0, 0), count=2, low=0, high=1)
    sides = [
        strides[at] * (value.shape[2 + at] - 1) + extra[at] + kernel[at] - pads[at] - pads[2 + at]
        for at in (0, 1)
    ]
    return Value(value.dtype, (value.shape[0], per_group * groups, *sides))


def _pool(node: Node, inputs: list[Value | None]) -> Value:
    """MaxPool and AveragePool."""
    check_count(node, inputs, 1)
    value = floating(inputs[0], 4)
    kernel = node.numbers("kernel_shape", (0,), count=2, low=1, high=64)
    if node.number("ceil_mode", 0):
        raise Refused("rounds its size up")
    strides, dilations, pads = _spatial(node, kernel)
    sides = [
        _pooled(value.shape[2 + at], kernel[at], strides[at], dilations[at], pads[at], pads[2 + at])
        for at in (0, 1)
    ]
    return Value(value.dtype, (*value.shape[:2], *sides))


def _global_pool(node: Node, inputs: list[Value | None]) -> Value:
    check_count(node, inputs, 1)
    value = floating(inputs[0], 4)
    return Value(value.dtype, (*value.shape[:2], 1, 1))


def _gemm(node: Node, inputs: list[Value | None]) -> Value:
    check_count(node, inputs, 2, 3)
    first, second = floating(inputs[0], 2), floating(inputs[1], 2)
    rows, inner = first.shape[::-1] if node.number("transA", 0) else first.shape
    same, columns = second.shape[::-1] if node.number("transB", 0) else second.shape
    if inner != same or (
        len(inputs) == 3 and broadcast(floating(inputs[2]).shape, (rows, columns)) != (rows, columns)
    ):
        raise Refused(f"multiplies {list(first.shape)} with {list(second.shape)}")
    return Value(first.dtype, (rows, columns))


def _matmul(node: Node, inputs: list[Value | None]) -> Value:
    check_count(node, inputs, 2)
    first, second = floating(inputs[0], 2, 3, 4), floating(inputs[1], 2, 3, 4)
    if first.shape[-1] != second.shape[-2] or first.dtype != second.dtype:
        raise Refused(f"multiplies {list(first.shape)} with {list(second.shape)}")
    batch = broadcast(first.shape[:-2], second.shape[:-2]) if first.shape[:-2] or second.shape[:-2] else ()
    return Value(first.dtype, (*batch, first.shape[-2], second.shape[-1]))


def _reduce(node: Node, inputs: list[Value | None]) -> Value:
    """Mean, sum, largest or norm over some axes: attributes, or a constant input."""
    check_count(node, inputs, 1, 2)
    value = floating(inputs[0])
    rank = len(value.shape)
    given = constant_list(inputs[1]) if len(inputs) == 2 else node.attributes.get("axes")
    if given is None or not given:
        raise Refused("names no axes")
    axes = {axis_of(axis, rank) for axis in given}
    if node.number("keepdims", 1):
        return Value(value.dtype, tuple(1 if at in axes else size for at, size in enumerate(value.shape)))
    return Value(value.dtype, tuple(size for at, size in enumerate(value.shape) if at not in axes))


MAP_OPERATORS: dict[str, Operator] = {
    **dict.fromkeys(
        ("Abs", "Exp", "Floor", "LeakyRelu", "Neg", "Reciprocal", "Relu", "Round", "Sigmoid", "Sqrt", "Tanh"),
        _unary,
    ),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _arithmetic),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "ReduceSumSquare"), _reduce),
    **dict.fromkeys(("MaxPool", "AveragePool"), _pool),
    "BatchNormalization": _norm,
    "Cast": _cast,
    "Clip": _clip,
    "Conv": _conv,
    "ConvTranspose": _transposed_conv,
    "Equal": _compare,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "Identity": _identity,
    "MatMul": _matmul,
    "PRelu": _prelu,
    "Where": _where,
}
