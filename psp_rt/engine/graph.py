"""Point a graph at its weights inside the engine file, and refuse graphs that reach elsewhere.

ONNX Runtime follows an external tensor's location wherever it leads, even to an address in memory,
and copies weights handed over as buffers (measured: three times their size in memory). Given the
engine file's own name and offset, it maps them from the file instead, without a copy. So the few
fields in question are rewritten in the protobuf message itself, without the onnx package:

    ModelProto.graph (7) .initializer (5) .external_data (13) {key (1), value (2)}

What an engine never needs is refused: local functions, subgraphs (loops that never end), sparse
tensors, custom operators, external data anywhere but in a graph's initializers, and what
:mod:`psp_rt.onnx_rules` forbids.
Field numbers: onnx.proto of ONNX 1.23; wire format: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..errors import FormatError
from .archive import Span
from .onnx_rules import MAX_NODES, OPERATOR_SETS, fault_of_node

MAX_GRAPH = 2**31 - 1  # bytes, protobuf's own limit
MAX_FIELDS = 100_000  # a generator of 1024 pixels has 7,244, which are read twice
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DOMAINS = (b"", b"ai.onnx")

_Rewrite = Callable[[memoryview], bytes | None]  # None leaves the field out


class WeightsPointer:
    """Rewrites one graph so that its weights are found in the engine file."""

    def __init__(self, graph_name: str, *, file_name: str, weights_name: str, weights: Span | None) -> None:
        self._graph_name = graph_name
        self._file_name = file_name
        self._weights_name = weights_name
        self._weights = weights
        self._fields_left = MAX_FIELDS
        self._graphs = 0

    def rewrite(self, model: memoryview) -> bytes:
        """Return the model with its external data pointing into the engine file.

        Raises:
            FormatError: It is no ONNX model, or it refers to anything but its own weights.
        """
        if len(model) > MAX_GRAPH:
            raise self._refusal(f"has {len(model)} bytes; expected less than 2 GiB")
        refuse_training = self._refuse("holds training information")
        refuse_functions = self._refuse("holds local functions; export it with them inlined")
        rewritten = self._message(
            model, {7: self._graph, 8: self._operator_set, 20: refuse_training, 25: refuse_functions}
        )
        if self._graphs != 1:
            raise self._refusal(f"is no ONNX model: it has {self._graphs} graphs")
        return rewritten

    def _graph(self, graph: memoryview) -> bytes:
        self._graphs += 1
        refuse_sparse = self._refuse("holds sparse tensors")
        rewritten = self._message(graph, {1: self._node, 5: self._initializer, 15: refuse_sparse})
        self._check_nodes(graph)
        return rewritten

    def _operator_set(self, entry: memoryview) -> bytes:
        for number, raw, payload in self._fields(entry):
            version = self._varint(raw, 1)[0] if number == 2 and payload is None else OPERATOR_SETS[0]
            if version not in OPERATOR_SETS:
                raise self._refusal(
                    f"is for operator set {version}; expected {OPERATOR_SETS[0]} to {OPERATOR_SETS[-1]}"
                )
        return bytes(entry)

    def _check_nodes(self, graph: memoryview) -> None:
        """Refuse operators that are not known, or have too few inputs, or inputs not made before."""
        nodes, known = [], set()
        for number, _, payload in self._fields(graph):
            if payload is None:
                continue
            if number == 1:
                nodes.append(payload)
            elif number in (5, 11):  # the name of an initializer, and that of an input
                known.update(self._texts(payload, 8 if number == 5 else 1)[:1])
        if len(nodes) > MAX_NODES:
            raise self._refusal(f"has {len(nodes)} nodes; expected at most {MAX_NODES}")
        for node in nodes:
            operator = "".join(self._texts(node, 4)[-1:])
            fault = fault_of_node(operator, self._texts(node, 1), known)
            if fault:
                raise self._refusal(fault)
            known.update(self._texts(node, 2))

    def _texts(self, message: memoryview, field_number: int) -> list[str]:
        return [
            bytes(payload).decode("utf-8", "replace")
            for number, _, payload in self._fields(message)
            if number == field_number and payload is not None
        ]

    def _node(self, node: memoryview) -> bytes:
        return self._message(node, {5: self._attribute, 7: self._domain})

    def _domain(self, domain: memoryview) -> bytes:
        if bytes(domain) not in _DOMAINS:
            raise self._refusal(f"uses operators of {bytes(domain)[:60]!r}; expected standard ONNX only")
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
                raise self._refusal(f"gives {key[:60]!r} twice for one tensor")
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
            raise self._refusal(
                f"refers to the file {location[:200]!r}; expected its own {self._weights_name!r}"
            )
        offset = self._number(entries, b"offset", default=b"0")
        length = self._number(entries, b"length", default=None)
        if offset + length > self._weights.size:
            raise self._refusal(
                f"wants bytes {offset} to {offset + length} of {self._weights_name}, "
                f"which has {self._weights.size}"
            )
        return Span(offset=self._weights.offset + offset, size=length)

    def _number(self, entries: dict[bytes, bytes], key: bytes, *, default: bytes | None) -> int:
        text = entries.get(key, default)
        if text is None or not text.isdigit() or len(text) > 18:
            raise self._refusal(f"has an external tensor whose {key.decode()} is {text and text[:60]!r}")
        return int(text)

    def _entry(self, entry: memoryview) -> tuple[bytes, bytes]:
        parts = {1: b"", 2: b""}
        for number, _, payload in self._fields(entry):
            if number in parts and payload is not None:
                parts[number] = bytes(payload)
        return parts[1], parts[2]

    def _message(self, message: memoryview, rewrites: dict[int, _Rewrite]) -> bytes:
        """Return a message with some of its fields rewritten."""
        parts: list[bytes | memoryview] = []
        for number, raw, payload in self._fields(message):
            rewrite = rewrites.get(number)
            if rewrite is None or payload is None:
                parts.append(raw)
            elif (rewritten := rewrite(payload)) is not None:
                parts.append(field(number, rewritten))
        return b"".join(parts)

    def _fields(self, message: memoryview) -> Iterator[tuple[int, memoryview, memoryview | None]]:
        """Yield each field's number, its bytes, and its payload where it has a length."""
        at = 0
        while at < len(message):
            self._fields_left -= 1
            if self._fields_left < 0:
                raise self._refusal(f"has more than {MAX_FIELDS} fields")
            start = at
            tag, at = self._varint(message, at)
            number, wire, payload = tag >> 3, tag & 7, None
            if wire == _BYTES:
                length, at = self._varint(message, at)
                payload = message[at : at + length]
                at += length
            elif wire == _VARINT:
                _, at = self._varint(message, at)
            elif wire in (_FIXED64, _FIXED32):
                at += 8 if wire == _FIXED64 else 4
            else:
                raise self._refusal("is no ONNX model")
            if at > len(message) or not 8 <= tag < 2**32:
                raise self._refusal("is no ONNX model, or was cut off")
            yield number, message[start:at], payload

    def _varint(self, message: memoryview, at: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= len(message):
                break
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & (2**64 - 1), at
        raise self._refusal("is no ONNX model, or was cut off")

    def _refuse(self, what: str) -> _Rewrite:
        def refuse(_: memoryview) -> bytes:
            raise self._refusal(what)

        return refuse

    def _refusal(self, what: str) -> FormatError:
        return FormatError(f"{self._graph_name} {what}")


def field(number: int, payload: bytes) -> bytes:
    """Encode a field that has a length."""
    return encoded(number << 3 | _BYTES) + encoded(len(payload)) + payload


def _entry(key: bytes, value: bytes) -> bytes:
    return field(1, key) + field(2, value)


def encoded(value: int) -> bytes:
    """Encode a number as a varint."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
