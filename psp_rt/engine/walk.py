"""Walk through a graph with one picture, so that every size is known before a runtime sees it.

A list of operators is no fence: with odd ranks, indices that are computed at run time or integers that
overflow, allowed operators ended the process in ONNX Runtime and OpenVINO, and a few hundred bytes asked
for gigabytes. The graphs that we export need none of that. With a batch of one, every shape in them
follows from constants, so this walk computes them all and refuses a graph where

- an operator is not one that our exporter writes, or has other inputs, ranks or attributes,
- an index, size, axis, padding or repetition is not a constant of bounded value,
- integers are computed at run time (only shapes may be, and they are computed here),
- a tensor, or all of them together, are larger than a model of this size needs,
- the result is not what the manifest says.

Values: onnx/docs/Operators.md of operator set 17.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from .map_operators import MAP_OPERATORS
from .protobuf import ProtobufReader
from .shape_operators import SHAPE_OPERATORS
from .values import (
    INT64,
    MAX_INTEGER,
    MAX_INTEGERS,
    MAX_NAME,
    MAX_RANK,
    TYPES,
    Node,
    Operator,
    Refused,
    Shape,
    Value,
)

MAX_NODES = 2000  # the official encoder at 256 pixels and the generator at 1024 have 595 and 687
OPERATORS: dict[str, Operator] = MAP_OPERATORS | SHAPE_OPERATORS


@dataclass(frozen=True, kw_only=True)
class Graph:
    """What the walk needs of a graph.

    Args:
        nodes: In the order of the file.
        known: Inputs, with a batch of one, and initializers.
        elements: Of all initializers.
    """

    nodes: tuple[Node, ...]
    known: dict[str, Value]
    elements: int


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How large tensors may be, in elements."""

    tensor: int
    total: int

    @staticmethod
    def of(pixels: int, weights: int) -> Limits:
        """Return the limits of a model.

        Measured: the largest tensors of the official models have 32 elements for each pixel of the larger
        of input and output, and all of them together 900; small models have relatively more.

        Args:
            pixels: Of the larger picture, in or out.
            weights: Elements in the file.
        """
        return Limits(
            tensor=128 * pixels + (1 << 23) + weights, total=4000 * pixels + (1 << 27) + 4 * weights
        )


def walk(graph: Graph, limits: Limits) -> dict[str, Value]:
    """Compute the shape of every value of a graph.

    Args:
        graph: Its nodes in an order in which inputs are computed before they are used.
        limits: On sizes.

    Returns:
        All values.

    Raises:
        Refused: Something in the graph is none of the things that our exporter writes.
    """
    values, total = dict(graph.known), 0
    for node in graph.nodes:
        try:
            operator = OPERATORS.get(node.operator)
            if operator is None:
                raise Refused("is an operator that our models do not need")
            unmade = next((name for name in node.inputs if name and name not in values), None)
            if unmade is not None:
                raise Refused(f"uses {unmade[:MAX_NAME]!r} before it is computed, or in a circle")
            inputs = [values[name] if name else None for name in node.inputs]
            if len(node.outputs) != 1:
                raise Refused(f"has {len(node.outputs)} outputs; expected one")
            result = operator(node, inputs)
            if (
                len(result.shape) > MAX_RANK
                or result.size > limits.tensor
                or min(result.shape, default=1) < 1
            ):
                raise Refused(f"makes a tensor of {list(result.shape)}, out of proportion to the model")
            total += result.size
            if total > limits.total:
                raise Refused("makes more data than a model of this size needs")
        except Refused as refused:
            name = (node.outputs or ("",))[0][:MAX_NAME]
            raise Refused(f"is refused: {node.operator[:MAX_NAME]} for {name!r} {refused}") from None
        except (KeyError, IndexError, TypeError, ValueError):
            raise Refused(
                f"is refused: it uses {node.operator[:MAX_NAME]} in a way that no export does"
            ) from None
        values[node.outputs[0]] = result
    return values


def read_graph(reader: ProtobufReader, graph: memoryview, open_sizes: Mapping[str, Shape]) -> Graph:
    """Read what the walk needs of a GraphProto.

    Args:
        reader: Of the protobuf message.
        graph: The message.
        open_sizes: Shapes of inputs, for sizes that the graph leaves open; the batch is one.
    """
    nodes, known, elements = [], {}, 0
    for number, _, payload in reader.fields(graph):
        if payload is None:
            continue
        if number == 1:
            nodes.append(_read_node(reader, payload))
        elif number == 5:
            name, value = _read_tensor(reader, payload)
            elements += value.size
            known[name] = value
        elif number == 11:
            name, value = _read_input(reader, payload, open_sizes)
            known.setdefault(name, value)  # older files also list initializers as inputs
    if len(nodes) > MAX_NODES:
        raise Refused(f"has {len(nodes)} nodes; expected at most {MAX_NODES}")
    return Graph(nodes=tuple(nodes), known=known, elements=elements)


def _read_node(reader: ProtobufReader, message: memoryview) -> Node:
    texts: dict[int, list[str]] = {1: [], 2: [], 4: [""]}
    attributes: dict[str, Any] = {}
    for number, _, payload in reader.fields(message):
        if payload is None:
            continue
        if number in texts:
            texts[number].append(bytes(payload).decode("utf-8", "replace"))
        elif number == 5:
            name, value = _read_attribute(reader, payload)
            attributes[name] = value
    return Node(texts[4][-1], tuple(texts[1]), tuple(texts[2]), attributes)


def _read_attribute(reader: ProtobufReader, message: memoryview) -> tuple[str, Any]:
    """Return an attribute's name and value: number, text, list of numbers, or tensor."""
    name, value = "", None
    numbers: list[int] = []
    for number, raw, payload in reader.fields(message):
        if number == 1 and payload is not None:
            name = bytes(payload).decode("utf-8", "replace")
        elif number == 2:
            value = struct.unpack("<f", raw[-4:])[0]
        elif number == 3:
            value = _signed(reader.varint(raw, 1)[0])
        elif number == 4 and payload is not None:
            value = bytes(payload).decode("utf-8", "replace")
        elif number == 5 and payload is not None:
            value = _read_tensor(reader, payload)[1]
        elif number == 8:
            numbers += [_signed(entry) for entry in _varints(reader, raw, payload)]
    return name, tuple(numbers) if numbers else value


def _read_tensor(reader: ProtobufReader, message: memoryview) -> tuple[str, Value]:
    """Return a TensorProto's name, and its type and shape; its content if it is a short list of int64."""
    name, dtype, data = "", 0, b""
    dims: list[int] = []
    numbers: list[int] = []
    for number, raw, payload in reader.fields(message):
        if number == 1:
            dims += [_signed(entry) for entry in _varints(reader, raw, payload)]
        elif number == 2:
            dtype = reader.varint(raw, 1)[0]
        elif number == 7 and len(numbers) <= MAX_INTEGERS:
            numbers += [_signed(entry) for entry in _varints(reader, raw, payload)]
        elif number == 8 and payload is not None:
            name = bytes(payload).decode("utf-8", "replace")
        elif number == 9 and payload is not None:
            data = bytes(payload[: 8 * MAX_INTEGERS + 1])
    if dtype not in TYPES or len(dims) > MAX_RANK or any(not 0 <= size < MAX_INTEGER for size in dims):
        raise Refused(f"holds the tensor {name[:MAX_NAME]!r} of type {dtype} and shape {dims[:8]}")
    value = Value(dtype, tuple(dims))
    if dtype == INT64 and value.size <= MAX_INTEGERS:
        content = (
            tuple(numbers) if numbers else struct.unpack(f"<{len(data) // 8}q", data[: len(data) // 8 * 8])
        )
        if len(content) == value.size:  # else it lies outside of the message, and is no constant here
            value = Value(dtype, value.shape, content)
    return name, value


def _read_input(
    reader: ProtobufReader, message: memoryview, open_sizes: Mapping[str, Shape]
) -> tuple[str, Value]:
    """Return a ValueInfoProto's name, type and shape; the first size is the batch."""
    name, dtype = "", 0
    sizes: list[Any] = []
    for number, _, payload in reader.fields(message):
        if number == 1 and payload is not None:
            name = bytes(payload).decode("utf-8", "replace")
        elif number == 2 and payload is not None:
            for kind, _, tensor in reader.fields(payload):
                if kind == 1 and tensor is not None:
                    dtype, sizes = _read_type(reader, tensor)
    expected = open_sizes.get(name, ())
    sizes = [1 if at == 0 else size for at, size in enumerate(sizes)]
    if None in sizes and len(sizes) == len(expected):
        sizes = [wanted if size is None else size for size, wanted in zip(sizes, expected, strict=True)]
    if dtype not in TYPES or None in sizes or not 0 < prod(sizes) < MAX_INTEGER or len(sizes) > MAX_RANK:
        raise Refused(f"has the input {name[:MAX_NAME]!r} of type {dtype} and shape {sizes[:8]}")
    return name, Value(dtype, tuple(sizes))


def _read_type(reader: ProtobufReader, message: memoryview) -> tuple[int, list[Any]]:
    """Return the type and the sizes of a TypeProto.Tensor; None is a size that is left open."""
    dtype = 0
    sizes: list[Any] = []
    for number, raw, payload in reader.fields(message):
        if number == 1:
            dtype = reader.varint(raw, 1)[0]
        elif number == 2 and payload is not None:
            for _, _, dimension in reader.fields(payload):
                size = None
                for part, part_raw, _ in reader.fields(dimension or memoryview(b"")):
                    size = _signed(reader.varint(part_raw, 1)[0]) if part == 1 else size
                sizes.append(size)
    return dtype, sizes


def _varints(reader: ProtobufReader, raw: memoryview, payload: memoryview | None) -> list[int]:
    """Return a repeated field's numbers: one, or several that are packed."""
    if payload is None:
        return [reader.varint(raw, 1)[0]]
    found: list[int] = []
    at = 0
    while at < len(payload) and len(found) <= MAX_INTEGERS:
        number, at = reader.varint(payload, at)
        found.append(number)
    return found


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
