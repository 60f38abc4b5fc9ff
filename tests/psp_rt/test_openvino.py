"""OpenVINO as a backend: what it is given, and how close it stays to ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.graphs.activations import psnr_db
from psp_rt import EngineFile, FormatError, Translator
from psp_rt.backends.openvino import backend as openvino_backend
from psp_rt.backends.openvino.rewrites import read_channels_last
from psp_rt.hardware.openvino import load_openvino, openvino_core, probe_openvino
from tests.models import tiny_engine

pytest.importorskip("openvino")
DEMONSTRATION = Path(__file__).parents[2] / "models" / "sketch.engine"


@pytest.fixture
def files() -> dict[str, bytes]:
    return tiny_engine.members()


def taken(path: Path, name: str) -> tuple[onnx.ModelProto, dict]:
    """Return a graph of an engine as OpenVINO gets it, and the weights that it gets beside it."""
    with EngineFile.open(path) as engine:
        graph, weights = engine.graph_with_inputs(name)
        return onnx.load_from_string(graph), weights


def test_openvino_gets_a_graph_that_refers_to_nothing(engine_paths):
    model, weights = taken(engine_paths["rgb"], "encoder")
    assert not [tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    assert [port.name for port in model.graph.input] == ["image", "matrix"]
    onnx.checker.check_model(model, full_check=True)
    data = memoryview(engine_paths["rgb"].read_bytes())
    np.testing.assert_array_equal(weights["matrix"].array(data), tiny_engine.encoder_matrix(3))


def test_weights_in_fp16_are_taken_as_they_are():
    model, weights = taken(DEMONSTRATION, "generator")
    assert {weight.dtype for weight in weights.values()} == {"float16"}
    assert len(model.graph.input) == 3 + len(weights)


def test_weights_that_lie_askew_are_still_right(tmp_path, files, picture):
    """A zip made by hand need not align its members."""
    path = tiny_engine.write_raw(tmp_path / "askew.engine", files)
    found = []
    for backend in ("onnxruntime", "openvino"):
        with Translator(path, device="cpu", backend=backend, threads=1) as translator:
            found.append(translator.encode(picture))
    np.testing.assert_array_equal(*found)


def test_a_graph_whose_weights_have_a_type_that_no_engine_uses_is_refused(tmp_path, files):
    model, _ = tiny_engine.encoder_graph("rgb")
    model.graph.initializer[-1].data_type = TensorProto.DOUBLE
    path = tiny_engine.write_raw(tmp_path / "bad.engine", files | {"encoder.onnx": model.SerializeToString()})
    with pytest.raises(FormatError, match=r"encoder\.onnx holds weights of data type 11; expected one of"):
        Translator(path, device="cpu", backend="openvino")


def test_two_weights_of_one_name_are_refused(tmp_path, files):
    model, _ = tiny_engine.encoder_graph("rgb")
    model.graph.initializer.append(model.graph.initializer[-1])
    path = tiny_engine.write_raw(tmp_path / "bad.engine", files | {"encoder.onnx": model.SerializeToString()})
    with pytest.raises(FormatError, match=r"encoder\.onnx holds two tensors named 'matrix'"):
        Translator(path, device="cpu", backend="openvino")


def test_an_external_tensor_without_a_place_reads_nothing(tmp_path, files):
    model, _ = tiny_engine.encoder_graph("rgb")
    lost = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    model.graph.initializer.append(lost)
    model.graph.node.append(helper.make_node("Identity", ["t"], ["unused"]))
    path = tiny_engine.write_raw(tmp_path / "bad.engine", files | {"encoder.onnx": model.SerializeToString()})
    with pytest.raises(FormatError, match=r"encoder\.onnx"):
        Translator(path, device="cpu", backend="openvino")


def test_a_picture_does_not_depend_on_its_neighbors():
    with Translator(DEMONSTRATION, device="cpu", backend="openvino") as translator:
        codes = np.stack([translator.sample(seed) for seed in range(3)])
        together = translator.generate(codes)
        for code, picture in zip(codes, together, strict=True):
            np.testing.assert_array_equal(translator.generate(code), picture)


def test_openvino_in_fp32_agrees_with_onnx_runtime():
    drawing = DEMONSTRATION.with_name("drawing.png")
    with (
        Translator(DEMONSTRATION, device="cpu", backend="onnxruntime") as one,
        Translator(DEMONSTRATION, device="cpu", backend="openvino") as other,
    ):
        codes = one.encode(drawing)
        assert np.abs(other.encode(drawing) - codes).max() < 1e-4 * np.ptp(codes)
        np.testing.assert_allclose(other.sample(1), one.sample(1), atol=1e-4)
        difference = other.generate(codes).astype(int) - one.generate(codes).astype(int)
        assert np.abs(difference).max() <= 1


def test_bf16_stays_close_to_fp32():
    drawing = DEMONSTRATION.with_name("drawing.png")
    if "BF16" not in probe_openvino().capabilities:
        pytest.skip("this processor has no BF16 arithmetic")
    with (
        Translator(DEMONSTRATION, device="cpu", backend="openvino") as exact,
        Translator(DEMONSTRATION, device="cpu", precision="bf16") as close,
    ):
        assert (close.backend, close.precision) == ("openvino", "bf16")
        codes, near = exact.encode(drawing), close.encode(drawing)
        assert (near != codes).any()  # the heads are in BF16
        assert np.abs(near - codes).max() < 0.01 * np.ptp(codes)  # and the backbone is not
        assert "encoder's heads and generator in bf16" in close.runs_on
        with close.clone() as other:
            np.testing.assert_array_equal(other.encode([drawing, drawing]), np.stack([near, near]))
        found, expected = np.asarray(close.run(drawing)), np.asarray(exact.run(drawing))
        assert (found != expected).any()  # or it was not BF16 at all
        assert psnr_db(found, expected) >= 40


def test_an_encoder_without_heads_stays_in_fp32(engine_paths):
    if "BF16" not in probe_openvino().capabilities:
        pytest.skip("this processor has no BF16 arithmetic")
    picture = np.random.default_rng(0).integers(0, 256, (16, 12, 3), np.uint8)
    with (
        Translator(engine_paths["rgb"], device="cpu", backend="openvino") as exact,
        Translator(engine_paths["rgb"], device="cpu", precision="bf16") as close,
    ):
        assert ", generator in bf16," in close.runs_on
        np.testing.assert_array_equal(close.encode(picture), exact.encode(picture))


# The layout of the color layers.


def product_model(result_shape: list[int], *, flat: int = 6, transpose: bool = False):
    """Return a model like a color layer: weights [1, 3, 4] times a map [1, 4, 2, 3], and its weights."""
    openvino = load_openvino()
    ops = openvino.opset13
    weights = np.random.default_rng(0).normal(size=(1, 4, 3) if transpose else (1, 3, 4)).astype(np.float32)
    given = ops.parameter([1, 4, 2, 3], np.float32, name="map")
    seen = ops.reshape(given, np.array([1, 4, flat], np.int64), False)
    product = ops.matmul(ops.constant(weights), seen, transpose, False)
    return openvino.Model([ops.reshape(product, np.array(result_shape, np.int64), False)], [given])


def run(model, given):
    return openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(given)[0]


def test_a_color_layer_reads_its_map_channels_last_and_gives_the_same():
    model, given = product_model([1, 3, 2, 3]), np.random.default_rng(1).normal(size=(1, 4, 2, 3))
    expected = run(product_model([1, 3, 2, 3]), given.astype(np.float32))
    assert read_channels_last(model) == 1
    np.testing.assert_allclose(run(model, given.astype(np.float32)), expected, rtol=1e-6)
    assert "Transpose" in [node.get_type_name() for node in model.get_ordered_ops()]
    assert read_channels_last(model) == 0


@pytest.mark.parametrize(
    ("shape", "transpose"),
    [([1, 3, 3, 2], False), ([1, 18], False), ([3, 1, 2, 3], False), ([1, 3, 2, 3], True)],
    ids=["another form", "a row", "another batch", "turned weights"],
)
def test_what_is_no_color_layer_stays_as_it_is(shape, transpose):
    model = product_model(shape, transpose=transpose)
    before = [node.get_friendly_name() for node in model.get_ordered_ops()]
    assert read_channels_last(model) == 0
    assert [node.get_friendly_name() for node in model.get_ordered_ops()] == before


def test_color_layers_are_rewritten_and_pictures_stay_the_same(monkeypatch, picture):
    found = []
    monkeypatch.setattr(openvino_backend, "read_channels_last", lambda m: found.append(read_channels_last(m)))
    with Translator(DEMONSTRATION, device="cpu", backend="openvino") as translator:
        rewritten = translator.run(picture)
    assert sum(found) == 6  # at 4, 8, 16, 32, 64 and 128 pixels
    monkeypatch.setattr(openvino_backend, "read_channels_last", lambda model: 0)
    with Translator(DEMONSTRATION, device="cpu", backend="openvino") as translator:
        assert np.abs(translator.run(picture).astype(int) - rewritten).max() <= 1
