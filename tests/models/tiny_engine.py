"""A tiny engine whose arithmetic NumPy reproduces exactly, to the last bit.

Every number in it is a small multiple of a power of two, so that no sum depends on its order. The
picture is neither square nor as large as the input, so that swapped axes show.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from psp_rt import ImageSize, InputSpec, Manifest, write_engine

HEIGHT, WIDTH = 16, 12
OUT_HEIGHT, OUT_WIDTH = 10, 14
L, D = 6, 8
CHANNELS = {"rgb": 3, "gray": 1, "labels": 1}
LABELS = 5


def spec(kind: str, *, resize: str | None = None) -> InputSpec:
    """Return what the tiny encoder takes."""
    labels = LABELS if kind == "labels" else None
    resize = resize or ("nearest" if kind == "labels" else "bilinear")
    return InputSpec(kind=kind, height=HEIGHT, width=WIDTH, labels=labels, resize=resize)


def manifest(kind: str | None = "rgb") -> Manifest:
    """Return the manifest of a tiny engine; of a generator-only one for None."""
    return Manifest(
        task="test",
        input=None if kind is None else spec(kind),
        output=ImageSize(height=OUT_HEIGHT, width=OUT_WIDTH),
        num_styles=L,
        style_dim=D,
        provenance={"source": "tests/models/tiny_engine.py"},
        parity={"codes_relative_error": 0.0, "image_max_levels": 0.0},
    )


def build(path: Path, kind: str | None = "rgb") -> Path:
    """Write a tiny engine and return its path."""
    write_engine(path, manifest(kind), members(kind))
    return path


def members(kind: str | None = "rgb") -> dict[str, bytes]:
    """Return the members of a tiny engine, without its manifest."""
    graphs = {"generator": generator_graph(), "mapping": mapping_graph()}
    if kind is not None:
        graphs["encoder"] = encoder_graph(kind)
    files = {}
    for name, (model, weights) in graphs.items():
        files[f"{name}.onnx"] = model.SerializeToString()
        if weights:
            files[f"{name}.weights"] = weights
    return files


def write_raw(path: Path, files: dict[str, bytes], kind: str | None = "rgb", **changes: object) -> Path:
    """Write an engine by hand, hashes right, so that ``files`` and manifest fields may be wrong."""
    entries = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in files.items()
    }
    fields = json.loads(replace(manifest(kind)).to_json()) | {"members": entries} | changes
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("manifest.json", json.dumps(fields))
        for name, data in files.items():
            archive.writestr(name, data)
    return path


# The arithmetic in NumPy.


def encode(images: np.ndarray) -> np.ndarray:
    """Return codes [N, L, D] of uint8 [N, HEIGHT, WIDTH, C]."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    codes: np.ndarray = flat @ encoder_matrix(images.shape[-1]) / 64 - 2
    return codes.reshape(-1, L, D)


def map_z(z: np.ndarray) -> np.ndarray:
    """Return styles w [N, D] of z [N, D]."""
    return z * np.float32(0.5) + np.float32(0.25)


def generate(codes: np.ndarray) -> np.ndarray:
    """Return RGB [N, OUT_HEIGHT, OUT_WIDTH, 3] of codes [N, L, D]."""
    flat = codes.reshape(len(codes), -1) @ generator_matrix() + 128
    picture: np.ndarray = (flat.clip(0, 255) + 0.5).astype(np.uint8)
    return picture.reshape(-1, OUT_HEIGHT, OUT_WIDTH, 3)


def encoder_matrix(channels: int, height: int = HEIGHT) -> np.ndarray:
    """Return a matrix [height * WIDTH * channels, L * D] that adds up two pixels for each entry."""
    rng = np.random.default_rng(1)
    matrix = np.zeros((height * WIDTH * channels, L * D), np.float32)
    for column in range(L * D):
        matrix[rng.choice(len(matrix), 2, replace=False), column] = 1
    return matrix


def generator_matrix() -> np.ndarray:
    """Return a matrix [L * D, OUT_HEIGHT * OUT_WIDTH * 3] of whole numbers from -2 to 2."""
    return np.random.default_rng(2).integers(-2, 3, (L * D, OUT_HEIGHT * OUT_WIDTH * 3)).astype(np.float32)


# The same as graphs.


def encoder_graph(
    kind: str, *, location: str = "encoder.weights", height: int = HEIGHT, batch: str | int = "N"
) -> tuple[onnx.ModelProto, bytes]:
    """Return the encoder and its weights; the keywords are for making it wrong."""
    channels = CHANNELS[kind]
    matrix, data = _external("matrix", encoder_matrix(channels, height), location)
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["real"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["sums"]),
        helper.make_node("Div", ["sums", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "two"], ["shifted"]),
        helper.make_node("Reshape", ["shifted", "shape"], ["codes"]),
    ]
    constants = [_constant("scale", 64.0), _constant("two", 2.0), _shape("shape", L, D), matrix]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [batch, height, WIDTH, channels])
    return _model(nodes, [image], [_floats("codes", L, D)], constants), data


def mapping_graph() -> tuple[onnx.ModelProto, bytes]:
    """Return the mapping, which keeps its few weights in itself."""
    nodes = [
        helper.make_node("Mul", ["z", "half"], ["scaled"]),
        helper.make_node("Add", ["scaled", "quarter"], ["w"]),
    ]
    constants = [_constant("half", 0.5), _constant("quarter", 0.25)]
    return _model(nodes, [_floats("z", D)], [_floats("w", D)], constants), b""


def generator_graph() -> tuple[onnx.ModelProto, bytes]:
    """Return the generator and its weights."""
    matrix, data = _external("matrix", generator_matrix(), "generator.weights")
    nodes = [
        helper.make_node("Unsqueeze", ["weights", "last"], ["column"]),
        helper.make_node("Sub", ["one", "column"], ["rest"]),
        helper.make_node("Mul", ["rest", "codes"], ["kept"]),
        helper.make_node("Mul", ["column", "reference"], ["moved"]),
        helper.make_node("Add", ["kept", "moved"], ["mixed"]),
        helper.make_node("Flatten", ["mixed"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["product"]),
        helper.make_node("Add", ["product", "middle"], ["shifted"]),
        helper.make_node("Clip", ["shifted", "black", "white"], ["clipped"]),
        helper.make_node("Add", ["clipped", "rounding"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["bytes"], to=TensorProto.UINT8),
        helper.make_node("Reshape", ["bytes", "shape"], ["image"]),
    ]
    last = helper.make_tensor("last", TensorProto.INT64, [1], [-1])
    values = {"one": 1.0, "middle": 128.0, "black": 0.0, "white": 255.0, "rounding": 0.5}
    constants = [_constant(name, value) for name, value in values.items()]
    inputs = [_floats("codes", L, D), _floats("reference", L, D), _floats("weights", L)]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", OUT_HEIGHT, OUT_WIDTH, 3])
    shape = _shape("shape", OUT_HEIGHT, OUT_WIDTH, 3)
    return _model(nodes, inputs, [image], [*constants, last, shape, matrix]), data


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: list[onnx.TensorProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _floats(name: str, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])


def _constant(name: str, value: float) -> onnx.TensorProto:
    return helper.make_tensor(name, TensorProto.FLOAT, [], [value])


def _shape(name: str, *shape: int) -> onnx.TensorProto:
    return helper.make_tensor(name, TensorProto.INT64, [len(shape) + 1], [-1, *shape])


def _external(name: str, values: np.ndarray, location: str) -> tuple[onnx.TensorProto, bytes]:
    """Return a tensor whose data lie 64 bytes into a file, and that file's content."""
    tensor = TensorProto(
        name=name, data_type=TensorProto.FLOAT, dims=values.shape, data_location=TensorProto.EXTERNAL
    )
    for key, value in {"location": location, "offset": "64", "length": str(values.nbytes)}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor, bytes(64) + values.tobytes()
