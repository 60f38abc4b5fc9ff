"""The subset of ONNX that an engine may contain, and where its weights lie.

A graph from a stranger reaches the runtimes' native code, which trusts it more than it should. So
`psp_rt.engine.walk` computes all of its shapes first and refuses what our exporter does not write. Local
functions, subgraphs (loops that never end), sparse tensors, custom operators and external data anywhere but
in a graph's initializers are refused here.

The weights stay in the engine file. A runtime gets them in one of two ways:

    in place     ONNX Runtime and TensorRT map external data from the engine file itself, at its offset.
                 (ONNX Runtime copies weights that are passed as buffers: three times their size in memory.)
    as inputs    OpenVINO cannot map from the middle of a file, so the tensors become inputs of the graph,
                 to be given as arrays over the mapped file.

ONNX Runtime follows an external tensor's location wherever it leads, so the location is always
rewritten. Both are done in the protobuf message itself, without the onnx package. The fields used:

    ModelProto {graph (7), opset_import (8), training_info (20), functions (25)}
    GraphProto {node (1), initializer (5), input (11): ValueInfoProto {name (1), type (2)}}
    TensorProto {dims (1), data_type (2), name (8), external_data (13) {key (1), value (2)}}
    TypeProto.tensor_type (1) {elem_type (1), shape (2)}

Field numbers: onnx.proto of ONNX 1.23.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from .archive import Span
from .protobuf import ProtobufReader, encoded, field
from .values import Refused
from .walk import Limits, read_graph, walk

MAX_GRAPH = 2**31 - 1  # bytes, protobuf's own limit
OPERATOR_SETS = range(7, 31)  # exports write 17
_DOMAINS = (b"", b"ai.onnx")

_TYPES = {1: "float32", 6: "int32", 7: "int64", 10: "float16"}  # TensorProto.DataType

_Rewrite = Callable[[memoryview], bytes | None]  # None leaves the field out


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


class WeightsPointer(ProtobufReader):
    """Rewrites one graph so that its weights are found in the engine file.

    Args:
        title: The graph, for messages.
        file_name: Of the engine file.
        weights_name: The member that holds the graph's weights.
        weights: Where that lies; None if there is none.
        inputs: The shapes that the graph's inputs have, with a batch of one.
        pixels: Of the larger picture, in or out.
    """

    def __init__(
        self,
        title: str,
        *,
        file_name: str,
        weights_name: str,
        weights: Span | None,
        inputs: Mapping[str, tuple[int, ...]],
        pixels: int,
    ) -> None:
        super().__init__(title)
        self._inputs, self._pixels = inputs, pixels
        self._file_name = file_name
        self._weights_name = weights_name
        self._weights = weights
        self._graphs = 0

    def rewrite(self, model: memoryview) -> bytes:
        """Return the model with its external data pointing into the engine file.

        Raises:
            FormatError: It is no ONNX model, or it refers to anything but its own weights.
        """
        if len(model) > MAX_GRAPH:
            raise self.refusal(f"has {len(model)} bytes; expected less than 2 GiB")
        refuse_training = self._refuse("holds training information")
        refuse_functions = self._refuse("holds local functions; export it with them inlined")
        rewritten = self._message(
            model, {7: self._graph, 8: self._operator_set, 20: refuse_training, 25: refuse_functions}
        )
        if self._graphs != 1:
            raise self.refusal(f"is no ONNX model: it has {self._graphs} graphs")
        return rewritten

    def _graph(self, graph: memoryview) -> bytes:
        self._graphs += 1
        refuse_sparse = self._refuse("holds sparse tensors")
        rewritten = self._message(graph, {1: self._node, 5: self._initializer, 15: refuse_sparse})
        self._walk(graph)
        return rewritten

    def _operator_set(self, entry: memoryview) -> bytes:
        for number, raw, payload in self.fields(entry):
            version = self.varint(raw, 1)[0] if number == 2 and payload is None else OPERATOR_SETS[0]
            if version not in OPERATOR_SETS:
                raise self.refusal(
                    f"is for operator set {version}; expected {OPERATOR_SETS[0]} to {OPERATOR_SETS[-1]}"
                )
        return bytes(entry)

    def _walk(self, graph: memoryview) -> None:
        """Refuse a graph whose sizes or operators are not those of a model of ours."""
        try:
            found = read_graph(self, graph, self._inputs)
            walk(found, Limits.of(self._pixels, found.elements))
        except Refused as refused:
            raise self.refusal(str(refused)) from None

    def _node(self, node: memoryview) -> bytes:
        return self._message(node, {5: self._attribute, 7: self._domain})

    def _domain(self, domain: memoryview) -> bytes:
        if bytes(domain) not in _DOMAINS:
            raise self.refusal(f"uses operators of {bytes(domain)[:60]!r}; expected standard ONNX only")
        return bytes(domain)

    def _attribute(self, attribute: memoryview) -> bytes:
        subgraph = self._refuse("holds a subgraph (If, Loop or Scan)")
        sparse = self._refuse("holds sparse tensors")
        return self._message(
            attribute, {5: self._inline, 10: self._inline, 6: subgraph, 11: subgraph, 22: sparse, 23: sparse}
        )

    def _inline(self, tensor: memoryview) -> bytes:
        return self._message(tensor, {13: self._refuse("has external data outside its initializers")})

    def _initializer(self, tensor: memoryview) -> bytes | None:
        entries: dict[bytes, bytes] = {}

        def take(entry: memoryview) -> None:
            key, value = self._entry(entry)
            if key in entries:
                raise self.refusal(f"gives {key[:60]!r} twice for one tensor")
            entries[key] = value

        kept = self._message(tensor, {13: take})
        return self._placed(kept, self._place(entries)) if entries else kept

    def _placed(self, tensor: bytes, span: Span) -> bytes | None:
        """Return a tensor whose data lie there in the engine file; None leaves it out of the graph."""
        place = {"location": self._file_name, "offset": str(span.offset), "length": str(span.size)}
        return tensor + b"".join(
            field(13, _entry(key.encode(), value.encode())) for key, value in place.items()
        )

    def _place(self, entries: dict[bytes, bytes]) -> Span:
        """Return where a tensor lies in the engine file."""
        location = entries.get(b"location", b"").decode("utf-8", "replace")
        if self._weights is None or location != self._weights_name:
            raise self.refusal(
                f"refers to the file {location[:200]!r}; expected its own {self._weights_name!r}"
            )
        offset = self._number(entries, b"offset", default=b"0")
        length = self._number(entries, b"length", default=None)
        if offset + length > self._weights.size:
            raise self.refusal(
                f"wants bytes {offset} to {offset + length} of {self._weights_name}, "
                f"which has {self._weights.size}"
            )
        return Span(offset=self._weights.offset + offset, size=length)

    def _number(self, entries: dict[bytes, bytes], key: bytes, *, default: bytes | None) -> int:
        text = entries.get(key, default)
        if text is None or not text.isdigit() or len(text) > 18:
            raise self.refusal(f"has an external tensor whose {key.decode()} is {text and text[:60]!r}")
        return int(text)

    def _entry(self, entry: memoryview) -> tuple[bytes, bytes]:
        parts = {1: b"", 2: b""}
        for number, _, payload in self.fields(entry):
            if number in parts and payload is not None:
                parts[number] = bytes(payload)
        return parts[1], parts[2]

    def _message(self, message: memoryview, rewrites: dict[int, _Rewrite]) -> bytes:
        """Return a message with some of its fields rewritten."""
        parts: list[bytes | memoryview] = []
        for number, raw, payload in self.fields(message):
            rewrite = rewrites.get(number)
            if rewrite is None or payload is None:
                parts.append(raw)
            elif (rewritten := rewrite(payload)) is not None:
                parts.append(field(number, rewritten))
        return b"".join(parts)

    def _refuse(self, what: str) -> _Rewrite:
        def refuse(_: memoryview) -> bytes:
            raise self.refusal(what)

        return refuse


class WeightsAsInputs(WeightsPointer):
    """Rewrites one graph so that its external tensors are inputs; ``taken`` lists them."""

    def __init__(
        self,
        title: str,
        *,
        weights_name: str,
        weights: Span | None,
        inputs: Mapping[str, tuple[int, ...]],
        pixels: int,
    ) -> None:
        super().__init__(
            title,
            file_name="",
            weights_name=weights_name,
            weights=weights,
            inputs=inputs,
            pixels=pixels,
        )
        self.taken: dict[str, Weight] = {}

    def _graph(self, graph: memoryview) -> bytes:
        kept = super()._graph(graph)
        return kept + b"".join(field(11, _value_info(weight)) for weight in self.taken.values())

    def _placed(self, tensor: bytes, span: Span) -> None:
        weight = self._described(tensor, span)
        if weight.name in self.taken:
            raise self.refusal(f"holds two tensors named {weight.name[:60]!r}")
        if prod(weight.shape) * np.dtype(weight.dtype).itemsize != span.size:
            raise self.refusal(
                f"gives {span.size} bytes for {weight.name[:60]!r}, {weight.dtype} {list(weight.shape)}"
            )
        self.taken[weight.name] = weight

    def _described(self, tensor: bytes, span: Span) -> Weight:
        name, kind, shape = b"", 0, []
        for number, raw, payload in self.fields(memoryview(tensor)):
            if number == 8 and payload is not None:
                name = bytes(payload)
            elif number == 2 and payload is None:
                kind, _ = self.varint(raw, 1)
            elif number == 1:
                shape += [self.varint(raw, 1)[0]] if payload is None else self._packed(payload)
        if kind not in _TYPES:
            raise self.refusal(f"holds weights of data type {kind}; expected one of {sorted(_TYPES)}")
        return Weight(name=name.decode("utf-8", "replace"), dtype=_TYPES[kind], shape=tuple(shape), span=span)

    def _packed(self, numbers: memoryview) -> list[int]:
        found, at = [], 0
        while at < len(numbers):
            number, at = self.varint(numbers, at)
            found.append(number)
        return found


def _entry(key: bytes, value: bytes) -> bytes:
    return field(1, key) + field(2, value)


def _value_info(weight: Weight) -> bytes:
    kind = {name: number for number, name in _TYPES.items()}[weight.dtype]
    sizes = b"".join(field(1, encoded(1 << 3) + encoded(size)) for size in weight.shape)
    tensor_type = encoded(1 << 3) + encoded(kind) + field(2, sizes)
    return field(1, weight.name.encode()) + field(2, field(1, tensor_type))
