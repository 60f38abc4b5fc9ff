"""A whole translation as one captured graph, on stand-ins for the driver and TensorRT."""

from __future__ import annotations

import numpy as np
import pytest

from psp_rt import BackendError, EngineFile, StyleMix, Translator
from psp_rt.backends.tensorrt.backend import TensorRtBackend
from psp_rt.backends.tensorrt.recordings import BATCH_SIZES_KEPT
from psp_rt.errors import PspError
from tests.models import tiny_engine
from tests.models.tiny_engine import HEIGHT, WIDTH, D, L
from tests.stand_ins import gpu as fake_gpu
from tests.stand_ins.cuda import ILLEGAL_ADDRESS, NO_MEMORY, RELEASES
from tests.stand_ins.gpu import TARGET


def open_backend(path, **settings):
    fake_gpu.engine_with_plans(path, **settings)
    with EngineFile.open(path) as engine:
        return TensorRtBackend.open(engine, device="cuda:0", target=TARGET)


@pytest.fixture
def backend(gpu, tmp_path):
    opened = open_backend(tmp_path / "a.engine", batches=(1, 1, 8))
    yield opened
    opened.close()
    assert gpu.left() == []


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


def styles(count, seed=0):
    rng = np.random.default_rng(seed)
    reference = rng.integers(-4, 5, (count, L, D)).astype(np.float32)
    return reference, rng.integers(0, 2, (count, L)).astype(np.float32)


def expected(pictures, reference, weights):
    """Return what the tiny engine makes of images [N, H, W, 3] and K styles, [N * K, H, W, 3]."""
    codes = np.repeat(tiny_engine.encode(pictures), len(reference), axis=0)
    moved = np.tile(weights, (len(pictures), 1))[:, :, None] == 1
    return tiny_engine.generate(np.where(moved, np.tile(reference, (len(pictures), 1, 1)), codes))


@pytest.mark.parametrize(
    ("count", "mixed"), [(1, 1), (3, 1), (1, 4), (2, 3), (3, 4), (20, 1), (1, 11), (3, 9)]
)
def test_every_number_of_images_and_styles_gives_what_its_arithmetic_says(backend, count, mixed):
    for seed in range(2):  # recorded, and replayed with other values
        given = (images(count, seed), *styles(mixed, seed))
        np.testing.assert_array_equal(backend.translate(*given), expected(*given))


def test_a_translation_is_one_launch(backend, gpu):
    backend.translate(images(2), *styles(3))
    launches = gpu.cuda.calls["cuGraphLaunch"]
    calls = len(gpu.cuda.log)
    backend.translate(images(2, seed=1), *styles(3))
    assert gpu.cuda.calls["cuGraphLaunch"] == launches + 1
    assert not [name for name in gpu.cuda.log[calls:] if "Memcpy" in name]  # the copies are in the graph


def test_codes_never_leave_the_gpu(backend, gpu):
    backend.translate(images(2), *styles(1))
    one_style = gpu.cuda.calls["cuMemcpyDtoDAsync"]
    assert one_style == 0  # the encoder writes where the generator reads
    assert gpu.cuda.calls["cuMemcpyDtoHAsync"] == 2  # the pictures, in the first run and in the capture
    backend.translate(images(2), *styles(3))
    assert gpu.cuda.calls["cuMemcpyDtoDAsync"] == 2 * 6
    assert gpu.cuda.calls["cuMemcpyDtoHAsync"] == 4


def test_a_plan_for_larger_batches_is_filled_up(gpu, tmp_path):
    backend = open_backend(tmp_path / "a.engine", batches=(3, 3, 4))
    for count, mixed in ((1, 1), (2, 1), (1, 2), (4, 1), (1, 4)):
        given = (images(count), *styles(mixed))
        np.testing.assert_array_equal(backend.translate(*given), expected(*given))
    assert {batch for _, batch in gpu.trt.computed} == {3, 4}
    backend.close()
    assert gpu.left() == []


def test_the_sizes_unused_for_longest_make_room(backend, gpu):
    for count in range(1, BATCH_SIZES_KEPT + 1):
        backend.translate(images(count), *styles(1))
    full = gpu.left().count("executable")
    backend.translate(images(BATCH_SIZES_KEPT + 1), *styles(1))
    assert gpu.left().count("executable") == full
    given = (images(1), *styles(1))
    np.testing.assert_array_equal(backend.translate(*given), expected(*given))


def test_too_little_memory_drops_other_recordings_first(backend, gpu):
    backend.translate(images(1), *styles(1))
    backend.encode(images(1))
    gpu.cuda.refusals["cuMemAlloc"] = NO_MEMORY
    given = (images(2), *styles(1))
    np.testing.assert_array_equal(backend.translate(*given), expected(*given))
    assert gpu.left().count("executable") == 1


def test_results_are_the_callers_to_keep(backend):
    first = backend.translate(images(1), *styles(1))
    kept = first.copy()
    backend.translate(images(1, seed=1), *styles(1))
    np.testing.assert_array_equal(first, kept)


def test_a_translator_encodes_mixes_and_generates_by_one_launch(gpu, tmp_path, picture):
    path = fake_gpu.engine_with_plans(tmp_path / "a.engine")
    with Translator(path, color="rgb") as translator:
        style = StyleMix(translator.sample(1), layers="2-4")
        translator.run(picture, style=style)
        before = gpu.cuda.calls["cuGraphLaunch"]
        found = translator.run(picture, style=style)
        assert gpu.cuda.calls["cuGraphLaunch"] == before + 1
        np.testing.assert_array_equal(found, translator.generate(translator.encode(picture), style))
    assert gpu.left() == []


def test_after_a_fault_on_the_gpu_there_are_no_more_results(backend, gpu):
    backend.translate(images(1), *styles(1))
    gpu.trt.faults = True
    with pytest.raises(BackendError, match="cuEventSynchronize failed on cuda:0: CUDA_ERROR_ILLEGAL_ADDRESS"):
        backend.translate(images(1), *styles(1))
    gpu.trt.faults, gpu.cuda.dead = False, 0
    with pytest.raises(BackendError, match=r"the GPU failed before .*ILLEGAL_ADDRESS.*open the engine again"):
        backend.translate(images(1), *styles(1))


def work(path, gpu):
    with EngineFile.open(path) as engine:
        backend = TensorRtBackend.open(engine, device="cuda:0", target=TARGET)
    try:
        backend.translate(images(1), *styles(2))
    finally:
        backend.close()


@pytest.mark.parametrize("status", [NO_MEMORY, ILLEGAL_ADDRESS])
def test_wherever_the_driver_fails_it_is_an_error_and_nothing_is_left(gpu, tmp_path, status):
    path = fake_gpu.engine_with_plans(tmp_path / "a.engine")
    start = len(gpu.cuda.log)
    work(path, gpu)
    log = gpu.cuda.log[start:]
    closing = log.index("cuGraphExecDestroy")
    tried = [at for at, name in enumerate(log[:closing]) if not any(word in name for word in RELEASES)]
    for at in tried:
        if log[at] in CLOSING:
            continue
        gpu.cuda.failures = {len(gpu.cuda.log) + at: status}
        with pytest.raises(PspError, match=f"{log[at]}|too little memory"):
            work(path, gpu)
        assert gpu.left() == [], log[at]
    assert {"cuMemcpyDtoDAsync", "cuMemsetD8Async", "cuGraphLaunch"} <= {log[at] for at in tried}


CLOSING = ("cuThreadExchangeStreamCaptureMode", "cuStreamSynchronize", "cuCtxPushCurrent")
