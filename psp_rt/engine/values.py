"""Tensors and operators of a graph, as `psp_rt.engine.walk` sees them: shapes, and constants of shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

Shape = tuple[int, ...]
FLOAT, UINT8, INT32, INT64, BOOL, FLOAT16 = 1, 2, 6, 7, 9, 10  # TensorProto.DataType
FLOATS = (FLOAT, FLOAT16)
TYPES = (FLOAT, UINT8, INT32, INT64, BOOL, FLOAT16)
MAX_RANK = 6
MAX_INTEGERS = 1024  # of a shape or an index list; larger integer tensors are not computed here
MAX_INTEGER = 1 << 31
MAX_NAME = 60  # characters of a name in a message


class Refused(Exception):
    """Why a graph is refused; the caller adds which one."""


@dataclass(frozen=True)
class Value:
    """A tensor: its type and shape, and its content if it is a small constant of integers."""

    dtype: int
    shape: Shape
    content: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    @property
    def integers(self) -> tuple[int, ...]:
        """The content of a constant.

        Raises:
            Refused: It is computed at run time.
        """
        if self.content is None:
            raise Refused("needs a constant where it has a computed value")
        return self.content


@dataclass(frozen=True)
class Node:
    """An operator with its attributes: numbers, texts, lists of numbers, and tensors."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def number(self, name: str, default: int) -> int:
        """Return a whole number."""
        value = self.attributes.get(name, default)
        if not isinstance(value, int) or abs(value) > MAX_INTEGER:
            raise Refused(f"has the attribute {name} = {value!r:.40}")
        return value

    def numbers(self, name: str, default: Sequence[int], *, count: int, low: int, high: int) -> Shape:
        """Return a list of so many whole numbers in a range."""
        value = self.attributes.get(name, tuple(default))
        if (
            not isinstance(value, tuple)
            or len(value) != count
            or not all(isinstance(entry, int) and low <= entry <= high for entry in value)
        ):
            raise Refused(f"has the attribute {name} = {value!r:.40}; expected {count} of {low} to {high}")
        return value

    def text(self, name: str, default: str, allowed: Sequence[str]) -> str:
        """Return one of some texts."""
        value = self.attributes.get(name, default)
        if value not in allowed:
            raise Refused(f"has the attribute {name} = {value!r:.40}; expected {' or '.join(allowed)}")
        return str(value)


Operator = Callable[[Node, list[Value | None]], Value]  # of a node and its inputs: the output


# What operators ask of their inputs.


def present(inputs: Sequence[Value | None]) -> list[Value]:
    """Return the inputs, none of which may be left out."""
    found = [value for value in inputs if value is not None]
    if len(found) != len(inputs):
        raise Refused("leaves an input out")
    return found


def floating(value: Value | None, *ranks: int) -> Value:
    """Return a floating-point tensor of one of some ranks; without ranks, of any."""
    if value is None or value.dtype not in FLOATS or (ranks and len(value.shape) not in ranks):
        found = "nothing" if value is None else f"type {value.dtype}, rank {len(value.shape)}"
        raise Refused(
            f"has an input of {found}; expected floating point, rank {' or '.join(map(str, ranks))}"
        )
    return value


def constant_list(value: Value | None, *, low: int = -MAX_INTEGER, high: int = MAX_INTEGER) -> Shape:
    """Return the content of a constant list of whole numbers in a range."""
    if value is None or value.dtype != INT64 or len(value.shape) > 1:
        raise Refused("needs a constant list of whole numbers")
    if not all(low <= entry <= high for entry in value.integers):
        raise Refused(f"has the constant {list(value.integers)[:8]}; expected {low} to {high}")
    return value.integers


def axis_of(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise Refused(f"names axis {axis} of {rank}")
    return axis % rank


def broadcast(*shapes: Shape) -> Shape:
    """Return the common shape of operands, by NumPy's rule."""
    rank = max(map(len, shapes))
    result = []
    for at in range(rank):
        sizes = {shape[at - rank + len(shape)] for shape in shapes if at - rank + len(shape) >= 0} - {1}
        if len(sizes) > 1:
            raise Refused(f"combines shapes {[list(shape) for shape in shapes]}")
        result.append(sizes.pop() if sizes else 1)
    return tuple(result)


def check_count(node: Node, inputs: Sequence[Value | None], low: int, high: int | None = None) -> None:
    high = low if high is None else high
    if not low <= len(inputs) <= high:
        raise Refused(f"has {len(inputs)} inputs; expected {low} to {high}")


def spread(value: Value, shape: Shape) -> Shape:
    """Return the content of a constant in a larger shape; only scalars and equal shapes are spread."""
    content = value.integers
    if value.shape == shape or len(content) == prod(shape):
        return content
    if len(content) != 1:
        raise Refused("combines integer lists of different lengths")
    return content * prod(shape)
