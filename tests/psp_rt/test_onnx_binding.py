"""ONNX Runtime between bound memory: real sessions, on memory of the CPU in place of a GPU's."""

from __future__ import annotations

import numpy as np
import pytest

from psp_rt import (
    BackendError,
    DeviceArray,
    DeviceError,
    EngineFile,
    FormatError,
    InputError,
    StyleMix,
    Translator,
)
from psp_rt.backends import onnx_binding, onnx_runtime
from psp_rt.backends.onnx_runtime import _left_on_cpu
from tests.models import tiny_engine
from tests.models.tiny_engine import HEIGHT, OUT_HEIGHT, OUT_WIDTH, WIDTH
from tests.stand_ins.library import DlpackArray, InterfaceArray

pytest.importorskip("onnxruntime")


@pytest.fixture
def translator(library, engine_paths, monkeypatch):
    """A translator that believes to be on CUDA; its sessions are on the CPU, as its GPU's memory is."""
    monkeypatch.setattr(onnx_binding, "_place", lambda device: ("cpu", 0))
    with Translator(engine_paths["rgb"], device="cpu", backend="onnxruntime", color="rgb") as opened:
        opened._backend.device = "cuda:0"
        yield opened


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, HEIGHT, WIDTH, 3), dtype=np.uint8)


def expected(pictures):
    return tiny_engine.generate(tiny_engine.encode(pictures.reshape(-1, HEIGHT, WIDTH, 3)))


@pytest.mark.parametrize(
    ("error", "kind"), [("Fail", BackendError), ("EPFail", BackendError), ("InvalidGraph", FormatError)]
)
def test_trouble_of_the_gpu_is_no_damage_to_the_file(engine_paths, monkeypatch, error, kind):
    import onnxruntime

    def fails(*_, **__):
        raise type(error, (Exception,), {})("CUDA failure 2: out of memory")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fails)
    with EngineFile.open(engine_paths["rgb"]) as engine:
        with pytest.raises(kind, match=r"encoder\.onnx cannot be loaded on cuda:0: CUDA failure 2"):
            onnx_runtime._session(engine, "encoder", "cuda:0", 1, cuda_graph=False)
        with pytest.raises(FormatError):
            onnx_runtime._session(engine, "encoder", "cpu", 1, cuda_graph=False)


@pytest.mark.parametrize(
    "style", [None, StyleMix.random(1, layers="2-"), StyleMix.random([1, 2, 3], layers="2-")]
)
def test_pictures_on_the_host_give_the_same_as_without_binding(translator, engine_paths, style):
    with Translator(engine_paths["rgb"], device="cpu", backend="onnxruntime", color="rgb") as plain:
        for given in (pixels(), pixels(6)):
            np.testing.assert_array_equal(translator.run(given, style=style), plain.run(given, style=style))


def test_codes_stay_where_they_are_made(translator, monkeypatch):
    bound = []
    real = onnx_binding.BoundGraphs._bind_input

    def watch(self, binding, key, value):
        bound.append((key, type(value).__name__))
        real(self, binding, key, value)

    monkeypatch.setattr(onnx_binding.BoundGraphs, "_bind_input", watch)
    translator.run(pixels())
    assert dict(bound)["codes"] == "OrtValue"


@pytest.mark.parametrize("kind", [DlpackArray, InterfaceArray])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_picture_on_the_gpu_is_read_and_its_result_written_where_they_are(
    translator, library, kind, streamed
):
    given, out = library.array(pixels(5), kind), library.empty(5, OUT_HEIGHT, OUT_WIDTH, 3, kind=kind)
    stream = library.stream if streamed else None
    assert translator.run(given, out=out, stream=stream) is out
    np.testing.assert_array_equal(library.read(out), expected(pixels(5)))
    result = translator.run(given, stream=stream)
    assert isinstance(result, DeviceArray)
    np.testing.assert_array_equal(result.to_host(), expected(pixels(5)))


def test_several_styles_of_pictures_on_the_gpu(translator, library):
    style = StyleMix.random([1, 2, 3], layers="2-")
    found = translator.run(library.array(pixels(2)), style=style)
    np.testing.assert_array_equal(found.to_host(), translator.run(pixels(2), style=style))


def test_what_is_wrong_with_an_array_is_said_as_with_tensorrt(translator, library):
    with pytest.raises(InputError, match="nothing is resized"):
        translator.run(library.empty(9, 9, 3))
    with pytest.raises(InputError, match="dtype float32"):
        translator.run(library.empty(HEIGHT, WIDTH, 3, kind=InterfaceArray, typestr="<f4"))


def test_missing_bindings_say_what_to_install(translator, library, monkeypatch):
    given = library.array(pixels())
    with monkeypatch.context() as patched:
        patched.setitem(__import__("sys").modules, "cuda.bindings.driver", None)
        with pytest.raises(DeviceError, match="pip install 'cuda-bindings"):
            translator.run(given)


def test_a_failing_run_is_a_backend_error(translator, library, monkeypatch):
    class Broken:
        def io_binding(self):
            raise RuntimeError("out of memory")

    monkeypatch.setitem(translator._backend._sessions, "generator", Broken())
    for given in (pixels(), library.array(pixels())):
        with pytest.raises(
            BackendError, match="ONNX Runtime failed in the generator on cuda:0: out of memory"
        ):
            translator.run(given)


def test_another_shape_than_the_manifests_is_refused(translator, monkeypatch):
    wrong = onnx_binding.graph_ports

    def other(manifest, name):
        inputs, (output,) = wrong(manifest, name)
        return inputs, [type(output)(name=output.name, dtype=output.dtype, shape=(7,))]

    monkeypatch.setattr(onnx_binding, "graph_ports", other)
    with pytest.raises(FormatError, match=r"encoder\.onnx gave \[1, 6, 8\]; the manifest promises \[1, 7\]"):
        translator.run(pixels())


def test_nodes_that_are_not_on_the_gpu_are_counted():
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    model = tiny_engine.mapping_graph()[0].SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    if not hasattr(session, "get_provider_graph_assignment_info"):
        pytest.skip("this ONNX Runtime does not tell")
    assert _left_on_cpu([session, session]) == ", 4 of 4 nodes on the CPU"
    assert _left_on_cpu([object()]) == ""
