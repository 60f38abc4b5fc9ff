"""Take the weights out of a graph: its external tensors become inputs, to be given as arrays.

For a runtime that cannot map weights from the middle of a file. What it is handed refers to no file
at all, and the weights stay where they are mapped. The protobuf fields read and written here, beside
those of :mod:`psp_rt.onnx_weights`:

    TensorProto {dims (1), data_type (2), name (8)}
    GraphProto.input (11): ValueInfoProto {name (1), type (2)}
    TypeProto.tensor_type (1) {elem_type (1), shape (2)}
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from .archive import Span
from .graph import WeightsPointer, encoded, field

_TYPES = {1: "float32", 6: "int32", 7: "int64", 10: "float16"}  # TensorProto.DataType


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A tensor that lies in the engine file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    span: Span

    def array(self, data: memoryview) -> npt.NDArray[Any]:
        """Return the tensor as it lies in the engine file's bytes, copied only if it lies askew."""
        array: npt.NDArray[Any] = np.ndarray(self.shape, self.dtype, data, self.span.offset)
        return np.require(array, requirements="A")


class WeightsAsInputs(WeightsPointer):
    """Rewrites one graph so that its external tensors are inputs; ``taken`` lists them."""

    def __init__(self, graph_name: str, *, weights_name: str, weights: Span | None) -> None:
        super().__init__(graph_name, file_name="", weights_name=weights_name, weights=weights)
        self.taken: dict[str, Weight] = {}

    def _graph(self, graph: memoryview) -> bytes:
        kept = super()._graph(graph)
        return kept + b"".join(field(11, _value_info(weight)) for weight in self.taken.values())

    def _placed(self, tensor: bytes, span: Span) -> None:
        weight = self._described(tensor, span)
        if weight.name in self.taken:
            raise self._refusal(f"holds two tensors named {weight.name[:60]!r}")
        if prod(weight.shape) * np.dtype(weight.dtype).itemsize != span.size:
            raise self._refusal(
                f"gives {span.size} bytes for {weight.name[:60]!r}, {weight.dtype} {list(weight.shape)}"
            )
        self.taken[weight.name] = weight

    def _described(self, tensor: bytes, span: Span) -> Weight:
        name, kind, shape = b"", 0, []
        for number, raw, payload in self._fields(memoryview(tensor)):
            if number == 8 and payload is not None:
                name = bytes(payload)
            elif number == 2 and payload is None:
                kind, _ = self._varint(raw, 1)
            elif number == 1:
                shape += [self._varint(raw, 1)[0]] if payload is None else self._packed(payload)
        if kind not in _TYPES:
            raise self._refusal(f"holds weights of data type {kind}; expected one of {sorted(_TYPES)}")
        return Weight(name=name.decode("utf-8", "replace"), dtype=_TYPES[kind], shape=tuple(shape), span=span)

    def _packed(self, numbers: memoryview) -> list[int]:
        found, at = [], 0
        while at < len(numbers):
            number, at = self._varint(numbers, at)
            found.append(number)
        return found


def _value_info(weight: Weight) -> bytes:
    kind = {name: number for number, name in _TYPES.items()}[weight.dtype]
    sizes = b"".join(field(1, encoded(1 << 3) + encoded(size)) for size in weight.shape)
    tensor_type = encoded(1 << 3) + encoded(kind) + field(2, sizes)
    return field(1, weight.name.encode()) + field(2, field(1, tensor_type))
