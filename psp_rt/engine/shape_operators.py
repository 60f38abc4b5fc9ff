"""Operators that move, join or repeat data, and those that compute shapes."""

from __future__ import annotations

from math import prod

from .values import (
    FLOAT,
    INT32,
    INT64,
    MAX_INTEGERS,
    MAX_RANK,
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


def _shape_of(node: Node, inputs: list[Value | None]) -> Value:
    check_count(node, inputs, 1)
    value, *_ = present(inputs)
    if node.number("start", 0) or "end" in node.attributes:
        raise Refused("takes a part of a shape")
    return Value(INT64, (len(value.shape),), value.shape)


def _reshape(node: Node, inputs: list[Value | None]) -> Value:
    check_count(node, inputs, 2)
    (value, *_), wanted = present(inputs), list(constant_list(inputs[1], low=-1))
    if node.number("allowzero", 0) and 0 in wanted:
        raise Refused("asks for an empty tensor")
    sizes = [value.shape[at] if size == 0 else size for at, size in enumerate(wanted)]
    if sizes.count(-1) > 1:
        raise Refused("leaves two sizes open")
    if -1 in sizes:
        rest = prod(size for size in sizes if size != -1)
        if value.size % rest:
            raise Refused(f"makes {wanted} of {list(value.shape)}")
        sizes[sizes.index(-1)] = value.size // rest
    if prod(sizes) != value.size:
        raise Refused(f"makes {wanted} of {list(value.shape)}")
    return Value(value.dtype, tuple(sizes), value.content)


def _flatten(node: Node, inputs: list[Value | None]) -> Value:
    check_count(node, inputs, 1)
    (value, *_), axis = present(inputs), node.number("axis", 1)
    if not 0 <= axis <= len(value.shape):
        raise Refused(f"names axis {axis}")
    return Value(value.dtype, (prod(value.shape[:axis]), prod(value.shape[axis:])))


def _squeezed_axes(node: Node, inputs: list[Value | None]) -> Shape:
    given = (
        constant_list(inputs[1], low=-MAX_RANK, high=MAX_RANK)
        if len(inputs) == 2
        else node.attributes.get("axes")
    )
    if not given or len(set(given)) != len(given):
        raise Refused("names no axes")
    return tuple(given)


def _unsqueeze(node: Node, inputs: list[Value | None]) -> Value:
    check_count(node, inputs, 1, 2)
    (value, *_), axes = present(inputs), _squeezed_axes(node, inputs)
    rank = len(value.shape) + len(axes)
    places = {axis_of(axis, rank) for axis in axes}
    rest = iter(value.shape)
    return Value(value.dtype, tuple(1 if at in places else next(rest) for at in range(rank)), value.content)


def _squeeze(node: Node, inputs: list[Value | None]) -> Value:
    check_count(node, inputs, 1, 2)
    (value, *_), axes = present(inputs), _squeezed_axes(node, inputs)
    places = {axis_of(axis, len(value.shape)) for axis in axes}
    if any(value.shape[at] != 1 for at in places):
        raise Refused(f"drops an axis of {list(value.shape)} that is not 1")
    shape = tuple(size for at, size in enumerate(value.shape) if at not in places)
    return Value(value.dtype, shape, value.content)


def _transpose(node: Node, inputs: list[Value | None]) -> Value:
    check_count(node, inputs, 1)
    value, *_ = present(inputs)
    order = node.attributes.get("perm")
    if not isinstance(order, tuple) or sorted(order) != list(range(len(value.shape))):
        raise Refused(f"has the order {order!r:.40}")
    return Value(value.dtype, tuple(value.shape[at] for at in order))


def _concat(node: Node, inputs: list[Value | None]) -> Value:
    check_count(node, inputs, 1, 256)
    values = [value for value in inputs if value is not None]
    first = values[0]
    axis = axis_of(node.number("axis", 0), len(first.shape))
    for value in values:
        same = value.dtype == first.dtype and len(value.shape) == len(first.shape)
        if (
            len(values) != len(inputs)
            or not same
            or any(
                a != b for at, (a, b) in enumerate(zip(value.shape, first.shape, strict=True)) if at != axis
            )
        ):
            raise Refused("joins tensors that do not fit")
    shape = (*first.shape[:axis], sum(value.shape[axis] for value in values), *first.shape[axis + 1 :])
    content = None
    if first.dtype == INT64:
        if len(shape) != 1 or shape[0] > MAX_INTEGERS:
            raise Refused("joins integers that are no list")
        content = tuple(entry for value in values for entry in value.integers)
    return Value(first.dtype, shape, content)


def _gather(node: Node, inputs: list[Value | None]) -> Value:
    check_count(node, inputs, 2)
    value, index = present(inputs)
    axis = axis_of(node.number("axis", 0), len(value.shape))
    size = value.shape[axis]
    if index.dtype != INT64 or not all(-size <= entry < size for entry in index.integers):
        raise Refused(f"takes {list(index.integers)[:8]} of {size}")
    shape = (*value.shape[:axis], *index.shape, *value.shape[axis + 1 :])
    content = None
    if value.content is not None and len(value.shape) == 1:
        content = tuple(value.content[entry] for entry in index.integers)
    return Value(value.dtype, shape, content)


def _slice(node: Node, inputs: list[Value | None]) -> Value:
    check_count(node, inputs, 3, 5)
    value, *_ = present(inputs)
    starts, ends = (constant_list(entry, low=-(1 << 62), high=1 << 63) for entry in inputs[1:3])
    axes = constant_list(inputs[3]) if len(inputs) > 3 else tuple(range(len(starts)))
    steps = constant_list(inputs[4], low=1, high=64) if len(inputs) > 4 else (1,) * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise Refused("has lists of different lengths")
    shape, content = list(value.shape), value.content
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        place = axis_of(axis, len(shape))
        span = range(*slice(start, end, step).indices(value.shape[place]))
        if not span:
            raise Refused("takes nothing")
        shape[place] = len(span)
        if content is not None:
            content = tuple(content[at] for at in span) if len(value.shape) == 1 else None
    return Value(value.dtype, tuple(shape), content)


def _expand(node: Node, inputs: list[Value | None]) -> Value:
    check_count(node, inputs, 2)
    (value, *_), wanted = present(inputs), constant_list(inputs[1], low=1)
    content = None
    shape = broadcast(value.shape, wanted)
    if value.dtype == INT64 and prod(shape) <= MAX_INTEGERS:
        content = spread(value, shape)
    return Value(value.dtype, shape, content)


def _tile(node: Node, inputs: list[Value | None]) -> Value:
    check_count(node, inputs, 2)
    value, repeats = floating(inputs[0]), constant_list(inputs[1], low=1, high=256)
    if len(repeats) != len(value.shape):
        raise Refused("repeats another number of axes")
    return Value(value.dtype, tuple(a * b for a, b in zip(value.shape, repeats, strict=True)))


def _pad(node: Node, inputs: list[Value | None]) -> Value:
    check_count(node, inputs, 2, 4)
    value = floating(inputs[0])
    node.text("mode", "constant", ("constant", "reflect", "edge"))
    rank = len(value.shape)
    pads = constant_list(inputs[1], low=0, high=256)
    if len(inputs) == 4 or len(pads) != 2 * rank:
        raise Refused(f"has {len(pads)} pads for {rank} axes")
    if (
        any(
            pads[at] >= size or pads[at + rank] >= size
            for at, size in enumerate(value.shape)
            if pads[at] or pads[at + rank]
        )
        and node.attributes.get("mode") == "reflect"
    ):
        raise Refused("reflects more than there is")
    return Value(value.dtype, tuple(size + pads[at] + pads[at + rank] for at, size in enumerate(value.shape)))


def _resize(node: Node, inputs: list[Value | None]) -> Value:
    """To a constant size, as the pyramids of the encoders do."""
    check_count(node, inputs, 4)
    value = floating(inputs[0], 4)
    node.text("mode", "nearest", ("linear", "nearest"))
    modes = ("align_corners", "half_pixel", "asymmetric", "pytorch_half_pixel")
    node.text("coordinate_transformation_mode", "half_pixel", modes)
    if (inputs[2] is not None and inputs[2].size) or "axes" in node.attributes:
        raise Refused("scales by factors; expected sizes")
    sizes = constant_list(inputs[3], low=1, high=1 << 15)
    if len(sizes) != 4 or sizes[:2] != value.shape[:2]:
        raise Refused(f"resizes {list(value.shape)} to {list(sizes)}")
    if any(size > 64 * before for size, before in zip(sizes, value.shape, strict=True)):
        raise Refused("enlarges more than 64 times")
    return Value(value.dtype, sizes)


def _depth_to_space(node: Node, inputs: list[Value | None]) -> Value:
    check_count(node, inputs, 1)
    value, block = floating(inputs[0], 4), node.number("blocksize", 0)
    node.text("mode", "DCR", ("DCR", "CRD"))
    batch, channels, height, width = value.shape
    if not 1 <= block <= 8 or channels % block**2:
        raise Refused(f"splits {channels} channels in blocks of {block}")
    return Value(value.dtype, (batch, channels // block**2, height * block, width * block))


def _one_hot(node: Node, inputs: list[Value | None]) -> Value:
    check_count(node, inputs, 3)
    ids, depth, values = present(inputs)
    count = depth.integers[0]
    if (
        ids.dtype not in (INT64, INT32, UINT8)
        or not 1 <= count <= 256
        or depth.size != 1
        or values.shape != (2,)
    ):
        raise Refused("spreads labels in a way that no export does")
    rank = len(ids.shape) + 1
    axis = axis_of(node.number("axis", -1), rank)
    return Value(values.dtype, (*ids.shape[:axis], count, *ids.shape[axis:]))


def _filled(node: Node, inputs: list[Value | None]) -> Value:
    """ConstantOfShape."""
    check_count(node, inputs, 1)
    shape, filling = constant_list(inputs[0], low=1), node.attributes.get("value")
    if filling is not None and (not isinstance(filling, Value) or filling.size != 1):
        raise Refused("is filled with more than one value")
    dtype = filling.dtype if filling is not None else FLOAT
    content = None
    if dtype == INT64 and filling is not None and prod(shape) <= MAX_INTEGERS:
        content = filling.integers * prod(shape)
    return Value(dtype, shape, content)


def _constant_node(node: Node, inputs: list[Value | None]) -> Value:
    check_count(node, inputs, 0)
    value = node.attributes.get("value")
    if not isinstance(value, Value):
        raise Refused("holds no tensor")
    return value


def _random(node: Node, inputs: list[Value | None]) -> Value:
    """RandomNormal with a shape, RandomNormalLike with that of a tensor: noise."""
    if node.operator == "RandomNormalLike":
        check_count(node, inputs, 1)
        return Value(node.number("dtype", FLOAT), floating(inputs[0]).shape)
    check_count(node, inputs, 0)
    shape = node.attributes.get("shape")
    if not isinstance(shape, tuple) or not 1 <= len(shape) <= 4 or min(shape) < 1:
        raise Refused(f"has the shape {shape!r:.40}")
    return Value(node.number("dtype", FLOAT), shape)


SHAPE_OPERATORS: dict[str, Operator] = {
    **dict.fromkeys(("RandomNormal", "RandomNormalLike"), _random),
    "Concat": _concat,
    "Constant": _constant_node,
    "ConstantOfShape": _filled,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape_of,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
