"""More styles than max_batch: a picture is encoded once, and its code stays on the GPU."""

from __future__ import annotations

import numpy as np
import pytest

from psp_rt import BackendError, StyleMix, Translator
from psp_rt.backends import onnx_binding
from psp_rt.backends.onnx_rows import CODES, ROWS, _model, row_session
from psp_rt.backends.parts import style_parts
from tests.models.tiny_engine import HEIGHT, OUT_HEIGHT, OUT_WIDTH, WIDTH, D, L
from tests.stand_ins import gpu as fake_gpu
from tests.stand_ins.cuda import NO_MEMORY

pytest.importorskip("onnxruntime")
STYLE = StyleMix.random(list(range(10)), layers="2-")  # in parts of 4, 4 and 2


@pytest.fixture
def tensorrt(library, tmp_path):
    path = fake_gpu.engine_with_plans(tmp_path / "a.engine", batches=(1, 1, 8))
    with Translator(path, color="rgb", max_batch=4) as opened:
        yield opened


@pytest.fixture
def onnxruntime(library, engine_paths, monkeypatch):
    """A translator that believes to be on CUDA; its sessions are on the CPU, as its GPU's memory is."""
    monkeypatch.setattr(onnx_binding, "_place", lambda device: ("cpu", 0))
    with Translator(engine_paths["rgb"], device="cpu", backend="onnxruntime", color="rgb") as opened:
        opened._backend.device = "cuda:0"
        yield opened


def pixels(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def expected(engine_paths):
    """What the CPU makes of two pictures and ten styles."""
    with Translator(engine_paths["rgb"], device="cpu", backend="onnxruntime", color="rgb") as plain:
        yield lambda seed=0: plain.run(pixels(2, seed), style=STYLE)


def test_all_images_take_the_same_styles_before_the_next_ones_come():
    parts = [(image, list(range(10))[styles]) for image, styles in style_parts(2, 10, 4)]
    assert parts == [
        (0, [0, 1, 2, 3]), (1, [0, 1, 2, 3]), (0, [4, 5, 6, 7]), (1, [4, 5, 6, 7]), (0, [8, 9]), (1, [8, 9]),
    ]  # fmt: skip


# TensorRT.


def test_tensorrt_encodes_pictures_on_the_host_once(tensorrt, gpu, expected):
    tensorrt.run(pixels(2), style=STYLE)  # records
    gpu.trt.computed.clear()
    np.testing.assert_array_equal(tensorrt.run(pixels(2, seed=1), style=STYLE), expected(1))
    networks = [network for network in gpu.trt.computed if network[0] != "mapping"]
    assert networks == [("encoder", 2), *[("generator", 4)] * 4, *[("generator", 2)] * 2]


def test_tensorrt_encodes_pictures_on_the_gpu_once(tensorrt, library, gpu, expected):
    tensorrt.run(library.array(pixels(2)), style=STYLE)
    library.synchronize()
    gpu.trt.computed.clear()
    found = tensorrt.run(library.array(pixels(2, seed=1)), style=STYLE)
    np.testing.assert_array_equal(found.to_host(), expected(1))
    networks = [network for network in gpu.trt.computed if network[0] != "mapping"]
    assert networks == [("encoder", 2), *[("generator", 4)] * 4, *[("generator", 2)] * 2]


def test_tensorrts_codes_never_leave_the_gpu(tensorrt, gpu):
    style = STYLE.with_references(np.zeros((10, L, D), np.float32))  # known, so that nothing is mapped
    tensorrt.run(pixels(2), style=style)
    gpu.cuda.log.clear()
    tensorrt.run(pixels(2, seed=1), style=style)
    copies = [name for name in gpu.cuda.log if "Memcpy" in name]
    # The images in one upload; then the code of each part. Pictures and styles are copied by the graphs.
    assert copies == ["cuMemcpyHtoDAsync", *["cuMemcpyDtoDAsync"] * 6]


def test_a_plan_that_takes_fewer_images_encodes_them_in_parts(library, gpu, tmp_path, expected):
    path = fake_gpu.engine_with_plans(tmp_path / "a.engine", batches=(1, 1, 1))
    with Translator(path, color="rgb", max_batch=4) as translator:
        np.testing.assert_array_equal(translator.run(pixels(2), style=STYLE), expected())
        found = translator.run(library.array(pixels(2)), style=STYLE).to_host()
        np.testing.assert_array_equal(found, expected())


def test_results_in_a_stream_are_right_though_the_styles_change_in_between(tensorrt, library, gpu, expected):
    results = [
        tensorrt.run(library.array(pixels(2, seed)), style=STYLE, stream=library.stream) for seed in range(3)
    ]
    for seed, result in enumerate(results):
        np.testing.assert_array_equal(library.read(result), expected(seed))
    assert gpu.cuda.faults == []


@pytest.mark.parametrize("on_gpu", [False, True])
def test_codes_in_use_are_not_dropped_where_memory_is_short(tensorrt, library, gpu, expected, on_gpu):
    given = library.array(pixels(2)) if on_gpu else pixels(2)
    style = STYLE.with_references(tensorrt._batches.settled(tensorrt._backend, STYLE).reference)
    with tensorrt.clone() as other:  # finds the call that allocates for the generator, after the encoder ran
        other.run(pixels(1))
        at = len(gpu.cuda.log)
        other.run(given, style=style)
        encoded = gpu.cuda.log.index("cuGraphLaunch", at)
        offset = gpu.cuda.log.index("cuMemAlloc", encoded) - at
    tensorrt.run(pixels(1))  # a recording that makes room
    gpu.cuda.failures = {len(gpu.cuda.log) + offset: NO_MEMORY}
    found = tensorrt.run(given, style=style)
    assert not gpu.cuda.failures
    np.testing.assert_array_equal(found.to_host() if on_gpu else found, expected())


# ONNX Runtime on CUDA.


@pytest.fixture
def runs(onnxruntime, monkeypatch):
    """The graphs that are run, and what is bound as codes."""
    seen = []
    real = onnx_binding.BoundGraphs._run

    def watch(self, name, rows, feeds, **places):
        seen.append((name, rows, type(feeds.get("codes")).__name__))
        return real(self, name, rows, feeds, **places)

    monkeypatch.setattr(onnx_binding.BoundGraphs, "_run", watch)
    return seen


@pytest.mark.parametrize("on_gpu", [False, True])
def test_onnx_runtime_encodes_once_and_its_codes_stay_on_the_gpu(
    onnxruntime, library, runs, expected, on_gpu
):
    found = onnxruntime.run(library.array(pixels(2)) if on_gpu else pixels(2), style=STYLE)
    np.testing.assert_array_equal(found.to_host() if on_gpu else found, expected())
    parts = [("generator", count, "OrtValue") for count in (4, 4, 4, 4, 2, 2)]
    assert runs == [("encoder", 2, "NoneType"), *parts]


@pytest.mark.parametrize("on_gpu", [False, True])
def test_onnx_runtimes_codes_stay_on_the_gpu_for_several_styles_at_once(onnxruntime, library, runs, on_gpu):
    style = StyleMix.random([1, 2], layers="2-")
    onnxruntime.run(library.array(pixels(2)) if on_gpu else pixels(2), style=style)
    assert runs == [("encoder", 2, "NoneType"), ("generator", 4, "OrtValue")]


def test_rows_are_copied_by_a_graph_that_onnx_accepts():
    onnx = pytest.importorskip("onnx")
    model = onnx.load_model_from_string(_model())
    onnx.checker.check_model(model, full_check=True)
    codes = np.random.default_rng(0).standard_normal((3, 2, 4), dtype=np.float32)
    rows = np.array([2, 0, 0, 1])
    (taken,) = row_session("cpu", 0).run(None, {CODES: codes, ROWS: rows})
    np.testing.assert_array_equal(taken, codes[rows])


def test_a_copy_that_fails_is_a_backend_error(onnxruntime, monkeypatch):
    def broken(*place):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(onnx_binding, "row_session", broken)
    with pytest.raises(BackendError, match="failed in copying codes on cuda:0: out of memory"):
        onnxruntime.run(pixels(1), style=StyleMix.random([1, 2], layers="2-"))


def test_pictures_have_the_size_that_they_promise(onnxruntime):
    assert onnxruntime.run(pixels(1), style=STYLE).shape == (1, 10, OUT_HEIGHT, OUT_WIDTH, 3)
