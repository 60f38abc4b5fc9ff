"""Read and write the protobuf wire format, as far as ONNX graphs need it.

Reference: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import FormatError

MAX_FIELDS = 200_000  # a generator of 1024 pixels has 7,244, which are read several times
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class ProtobufReader:
    """Reads messages of one file; the number of fields is bounded.

    Args:
        title: The file, for messages.
    """

    def __init__(self, title: str) -> None:
        self._title, self._fields_left = title, MAX_FIELDS

    def fields(self, message: memoryview) -> Iterator[tuple[int, memoryview, memoryview | None]]:
        """Yield each field's number, its bytes, and its payload where it has a length."""
        at = 0
        while at < len(message):
            self._fields_left -= 1
            if self._fields_left < 0:
                raise self.refusal(f"has more than {MAX_FIELDS} fields")
            start = at
            tag, at = self.varint(message, at)
            number, wire, payload = tag >> 3, tag & 7, None
            if wire == _BYTES:
                length, at = self.varint(message, at)
                payload = message[at : at + length]
                at += length
            elif wire == _VARINT:
                _, at = self.varint(message, at)
            elif wire in (_FIXED64, _FIXED32):
                at += 8 if wire == _FIXED64 else 4
            else:
                raise self.refusal("is no ONNX model")
            if at > len(message) or not 8 <= tag < 2**32:
                raise self.refusal("is no ONNX model, or was cut off")
            yield number, message[start:at], payload

    def varint(self, message: memoryview, at: int) -> tuple[int, int]:
        """Return the number at a place, and the place after it."""
        value = 0
        for shift in range(0, 70, 7):
            if at >= len(message):
                break
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & (2**64 - 1), at
        raise self.refusal("is no ONNX model, or was cut off")

    def refusal(self, what: str) -> FormatError:
        """Return the error for a file that is refused; ``what`` follows its name."""
        return FormatError(f"{self._title} {what}")


def field(number: int, payload: bytes) -> bytes:
    """Encode a field that has a length."""
    return encoded(number << 3 | _BYTES) + encoded(len(payload)) + payload


def encoded(value: int) -> bytes:
    """Encode a number as a varint."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
