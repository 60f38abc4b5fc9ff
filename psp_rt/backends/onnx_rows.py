"""Copies of rows of codes on the device that ONNX Runtime runs on, by a graph of one Gather.

ONNX Runtime's Python interface has no copy from a GPU to itself, and NVIDIA's bindings need not be installed
where pictures come from the host. So one more session does it, on the provider of the others. Its graph is
written here, field by field, since the runtime does without the onnx package; the field numbers are those
of onnx.proto:

    ModelProto      ir_version (1), graph (7), opset_import (8) {version (2)}
    GraphProto      node (1), name (2), input (11), output (12)
    NodeProto       input (1), output (2), op_type (4)
    ValueInfoProto  name (1), type (2) {tensor_type (1) {elem_type (1), shape (2) {dim (1) {dim_param (2)}}}}
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from ..engine.graph import encoded, field
from ..errors import DeviceError
from ..hardware.probe import CUDA_PROVIDER

if TYPE_CHECKING:
    import onnxruntime

CODES, ROWS, TAKEN = "codes", "rows", "taken"
_FLOAT, _INT64 = 1, 7  # TensorProto.DataType
_IR_VERSION, _OPERATOR_SET = 8, 17  # what exports write


@cache
def row_session(kind: str, index: int) -> onnxruntime.InferenceSession:
    """Return the session for a device; its run gives the rows [M, L, D] of codes [N, L, D].

    It holds no weights, so one for each device is kept for good.

    Raises:
        DeviceError: ONNX Runtime does not give the device after all.
    """
    import onnxruntime

    provider = CUDA_PROVIDER if kind == "cuda" else "CPUExecutionProvider"
    settings = {"device_id": str(index)} if kind == "cuda" else {}
    session = onnxruntime.InferenceSession(_model(), providers=[(provider, settings)], enable_fallback=0)
    if provider not in session.get_providers():
        raise DeviceError(f"ONNX Runtime gives no session on {kind}:{index}; see psp-rt doctor")
    return session


def _model() -> bytes:
    node = b"".join(
        (
            field(1, CODES.encode()),
            field(1, ROWS.encode()),
            field(2, TAKEN.encode()),
            field(4, b"Gather"),  # of the first axis, by default
        )
    )
    graph = b"".join(
        (
            field(1, node),
            field(2, b"rows"),
            field(11, _port(CODES, _FLOAT, "NLD")),
            field(11, _port(ROWS, _INT64, "M")),
            field(12, _port(TAKEN, _FLOAT, "MLD")),
        )
    )
    return _number(1, _IR_VERSION) + field(7, graph) + field(8, _number(2, _OPERATOR_SET))


def _port(name: str, kind: int, sizes: str) -> bytes:
    shape = b"".join(field(1, field(2, size.encode())) for size in sizes)
    return field(1, name.encode()) + field(2, field(1, _number(1, kind) + field(2, shape)))


def _number(number: int, value: int) -> bytes:
    """Encode a field that is a varint, whose wire type is 0."""
    return encoded(number << 3) + encoded(value)
