"""The TensorRT backend, on stand-ins for the driver and TensorRT that check what they are told."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from psp_rt import BackendError, DeviceError, EngineFile, FormatError, StyleMix, Translator
from psp_rt.backends.tensorrt.backend import TensorRtBackend
from psp_rt.backends.tensorrt.recordings import BATCH_SIZES_KEPT
from psp_rt.build.build import BuildRequest, build
from psp_rt.build.builder import BuildOptions
from psp_rt.errors import PspError
from tests.models import tiny_engine
from tests.models.tiny_engine import HEIGHT, WIDTH, D, L
from tests.stand_ins import gpu as fake_gpu
from tests.stand_ins.cuda import CAPTURING, ILLEGAL_ADDRESS, NO_MEMORY, RELEASES
from tests.stand_ins.gpu import TARGET

VERSIONS = ["8.6.1", "10.13.3.9", "11.0.0.114"]
TARGETS = {version: f"nvidia-h200-sm90-tensorrt-{version}" for version in VERSIONS}


@pytest.fixture(params=VERSIONS)
def every_version(request, monkeypatch):
    return fake_gpu.install(monkeypatch, request.param)


def open_backend(path, gpu, **settings):
    fake_gpu.engine_with_plans(path, **settings)
    with EngineFile.open(path) as engine:
        return TensorRtBackend.open(engine, device="cuda:0", target=TARGETS[gpu.trt.__version__])


@pytest.fixture
def backend(gpu, tmp_path):
    opened = open_backend(tmp_path / "a.engine", gpu)
    yield opened
    gpu.cuda.failures.clear()
    opened.close()
    assert gpu.left() == []


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


def mix(count):
    rng = np.random.default_rng(count)
    codes, reference = rng.integers(-4, 5, (2, count, L, D)).astype(np.float32)
    return codes, reference, rng.integers(0, 2, (count, L)).astype(np.float32)


# What it computes.


def test_every_graph_gives_what_its_arithmetic_says_in_every_version(every_version, tmp_path):
    backend = open_backend(tmp_path / "a.engine", every_version)
    for count in (2, 3):  # two execution contexts of one engine
        np.testing.assert_array_equal(backend.encode(images(count)), tiny_engine.encode(images(count)))
    z = np.ones((3, D), np.float32)
    np.testing.assert_array_equal(backend.map(z), tiny_engine.map_z(z))
    codes, reference, weights = mix(2)
    mixed = np.where(weights[:, :, None] == 1, reference, codes)
    np.testing.assert_array_equal(backend.generate(codes, reference, weights), tiny_engine.generate(mixed))
    backend.close()
    assert every_version.left() == []


def test_a_translator_runs_a_fitting_plan_and_says_so(gpu, tmp_path, picture, caplog):
    caplog.set_level("INFO", "psp_rt")
    path = fake_gpu.engine_with_plans(tmp_path / "a.engine")
    with Translator(path, color="rgb") as translator:
        assert (translator.device, translator.backend, translator.precision) == ("cuda:0", "tensorrt", "fp32")
        expected = tiny_engine.generate(tiny_engine.encode(picture[None]))[0]
        np.testing.assert_array_equal(translator.run(picture), expected)
        variants = translator.run(picture, style=StyleMix.random([1, 2, 3], layers="2-"))
        assert variants.shape == (3, *expected.shape)
    assert caplog.messages[-1].endswith(
        f"runs on cuda:0, TensorRT 10.13.3.9, fp32 (NVIDIA H200; the engine's plan {TARGET})"
    )
    assert gpu.left() == []


def test_an_engine_without_its_graphs_runs_from_its_plans(gpu, tmp_path, picture):
    path, small = fake_gpu.engine_with_plans(tmp_path / "a.engine"), tmp_path / "b.engine"
    build(BuildRequest(engine=path, options=BuildOptions(), output=small, strip_onnx=True))
    with Translator(small) as translator:
        assert translator.backend == "tensorrt"
        assert translator.run(picture).shape == (10, 14, 3)
    with pytest.raises(FormatError, match=r"graphs were taken out; use the engine .*run here: asked for"):
        Translator(small, device="cpu")


def test_a_generator_only_engine_has_no_encoder_to_load(gpu, tmp_path):
    backend = open_backend(tmp_path / "a.engine", gpu, kind=None)
    assert backend.generate(*mix(1)).shape == (1, 10, 14, 3)
    backend.close()
    assert gpu.left() == []


def test_results_are_the_callers_to_keep(backend):
    first = backend.encode(images(1))
    kept = first.copy()
    backend.encode(images(1, seed=1))
    np.testing.assert_array_equal(first, kept)


# Graphs and batches.


def test_each_batch_size_is_captured_once_and_then_replayed(backend, gpu):
    for count in (1, 2, 1, 2, 1):
        backend.encode(images(count))
    assert gpu.cuda.calls["cuGraphInstantiate"] == 2
    assert gpu.cuda.calls["cuGraphLaunch"] == 5
    assert gpu.cuda.calls["cuGraphDestroy"] == 2  # what was recorded; its executable form stays


def test_the_batch_size_unused_for_longest_makes_room(gpu, tmp_path):
    backend = open_backend(tmp_path / "a.engine", gpu, batches=(1, 1, 8))
    for count in range(1, BATCH_SIZES_KEPT + 1):
        backend.encode(images(count))
    full = gpu.left()
    backend.encode(images(1))  # used again, so 2 is the oldest now
    backend.encode(images(5))
    assert gpu.left() == full
    captured = gpu.cuda.calls["cuGraphInstantiate"]
    backend.encode(images(1))
    assert gpu.cuda.calls["cuGraphInstantiate"] == captured
    np.testing.assert_array_equal(backend.encode(images(2)), tiny_engine.encode(images(2)))
    assert gpu.cuda.calls["cuGraphInstantiate"] == captured + 1
    backend.close()
    assert gpu.left() == []


def test_a_batch_above_the_plans_largest_is_split(backend, gpu):
    np.testing.assert_array_equal(backend.encode(images(10)), tiny_engine.encode(images(10)))
    assert [batch for _, batch in gpu.trt.computed] == [
        4,
        4,
        4,
        2,
        2,
    ]  # each size runs once before its capture


def test_a_batch_below_the_plans_smallest_is_filled_up(gpu, tmp_path):
    backend = open_backend(tmp_path / "a.engine", gpu, batches=(3, 3, 4))
    np.testing.assert_array_equal(backend.encode(images(4)), tiny_engine.encode(images(4)))
    for count in (1, 5):
        np.testing.assert_array_equal(backend.encode(images(count)), tiny_engine.encode(images(count)))
    assert {batch for _, batch in gpu.trt.computed} == {3, 4}
    backend.encode(images(3))
    backend.encode(images(1))
    assert not backend._recordings["encoder"][3]._host["image"][1:].any()  # nothing of the call before
    backend.close()


def test_all_graphs_of_a_backend_share_one_block_for_activations(backend, gpu):
    backend.encode(images(1))
    backend.generate(*mix(2))
    backend.map(np.ones((1, D), np.float32))
    contexts = [thing for thing in gpu.trt.alive if type(thing).__name__ == "Context"]
    assert len(contexts) == 3
    assert len({(context.device_memory, context.memory_size) for context in contexts}) == 1
    assert contexts[0].memory_size == 5000  # the generator's, the largest


# Clones and threads.


def test_clones_share_the_weights_and_end_in_any_order(backend, gpu):
    clone = backend.clone()
    assert gpu.left().count("Engine") == 3
    assert gpu.cuda.retained == 1
    codes = backend.encode(images(2))
    backend.close()
    np.testing.assert_array_equal(clone.encode(images(2)), codes)
    assert gpu.left().count("Engine") == 3
    clone.close()
    assert gpu.left() == []


def test_a_clone_that_cannot_be_made_leaves_the_original(backend, gpu):
    gpu.cuda.free_bytes = 100
    with pytest.raises(BackendError, match="too little memory left"):
        backend.clone()
    gpu.cuda.free_bytes = 1 << 40
    np.testing.assert_array_equal(backend.encode(images(1)), tiny_engine.encode(images(1)))


def test_threads_run_beside_each_other_on_clones(backend):
    clones = [backend.clone() for _ in range(4)]
    found = {}

    def work(number):
        for count in (1, 2, 3):
            found[number, count] = clones[number].encode(images(count, seed=number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (number, count), codes in found.items():
        np.testing.assert_array_equal(codes, tiny_engine.encode(images(count, seed=number)))
    assert len(found) == 12
    for clone in clones:
        clone.close()


# Release.


def test_everything_is_released_in_reverse_order(gpu, tmp_path):
    backend = open_backend(tmp_path / "a.engine", gpu)
    backend.encode(images(1))
    gpu.cuda.released.clear()
    backend.close()
    backend.close()
    memory = ["pinned memory"] * 2 + ["device memory"] * 2
    assert gpu.cuda.released == ["executable", *memory, "device memory", "event", "stream"]
    assert gpu.left() == []


def test_a_release_that_fails_does_not_keep_the_others(gpu, tmp_path):
    backend = open_backend(tmp_path / "a.engine", gpu)
    backend.encode(images(1))
    gpu.cuda.refusals["cuGraphExecDestroy"] = 1
    with pytest.raises(BackendError, match="cuGraphExecDestroy failed on cuda:0: error 1"):
        backend.close()
    assert list(gpu.cuda.live.values()) == ["executable"]
    assert gpu.cuda.retained == 0


def test_a_backend_that_is_dropped_releases_its_memory(gpu, tmp_path):
    backend = open_backend(tmp_path / "a.engine", gpu)
    backend.encode(images(1))
    del backend
    assert gpu.left() == []


def test_a_closed_backend_says_so(gpu, tmp_path):
    backend = open_backend(tmp_path / "a.engine", gpu)
    backend.close()
    for call in (lambda: backend.encode(images(1)), backend.clone):
        with pytest.raises(BackendError, match="is closed; open the engine again"):
            call()


# Errors.


def steps(gpu, tmp_path):
    """Return the driver's calls of an opening and a run that go well."""
    backend = open_backend(tmp_path / "well.engine", gpu)
    backend.encode(images(1))
    log = list(gpu.cuda.log)
    backend.close()
    return log


def open_run_and_close(path):
    with EngineFile.open(path) as engine:
        backend = TensorRtBackend.open(engine, device="cuda:0", target=TARGET)
    try:
        backend.encode(images(1))
    finally:
        backend.close()


@pytest.mark.parametrize("status", [NO_MEMORY, ILLEGAL_ADDRESS])
def test_wherever_the_driver_fails_it_is_an_error_and_nothing_is_left(gpu, tmp_path, status):
    log = steps(gpu, tmp_path)
    path = tmp_path / "well.engine"
    for at, name in enumerate(log):
        if any(word in name for word in (*RELEASES, "cuThreadExchange")):  # whose errors are passed over
            continue
        gpu.cuda.failures = {len(gpu.cuda.log) + at: status}
        with pytest.raises(PspError, match=f"{name}|too little memory"):
            open_run_and_close(path)
        assert gpu.left() == [], name
    assert {"cuMemAlloc", "cuStreamBeginCapture", "cuGraphLaunch", "cuEventSynchronize"} <= set(log)


@pytest.mark.parametrize(
    ("refuses", "message"),
    [
        ("context encoder", "makes no execution context for the encoder on cuda:0: out of persistent memory"),
        ("shape encoder", r"takes no image \[1, 16, 12, 3\] in the encoder"),
        ("address image", "takes no memory for image in the encoder"),
        (
            "run encoder",
            r"refused to run in the encoder on cuda:0: no kernel for this GPU\. Use backend",
        ),
        ("capture encoder", "refused to run in the encoder"),
    ],
)
def test_what_tensorrt_refuses_is_an_error_with_its_reason_and_the_backend_stays_usable(
    backend, gpu, refuses, message
):
    before = gpu.left()
    gpu.trt.refuses = refuses
    with pytest.raises(BackendError, match=message):
        backend.encode(images(1))
    assert gpu.left() == before
    assert backend.map(np.ones((1, D), np.float32)).shape == (1, D)
    gpu.trt.refuses = ""
    np.testing.assert_array_equal(backend.encode(images(1)), tiny_engine.encode(images(1)))


@pytest.mark.parametrize(
    ("refuses", "message"),
    [
        ("runtime", "makes no runtime"),
        ("deserialize generator", "makes no engine of the plan of the generator .* of another version"),
    ],
)
def test_a_plan_that_tensorrt_refuses_leaves_nothing(gpu, tmp_path, refuses, message):
    gpu.trt.refuses = refuses
    with pytest.raises(BackendError, match=message):
        open_backend(tmp_path / "a.engine", gpu)
    assert gpu.left() == []


def test_a_plan_with_other_inputs_than_the_manifest_is_refused(gpu, tmp_path):
    gpu.trt.wrong_type = "half"
    with pytest.raises(FormatError, match=r"the plan of the mapping has the input z half \[N, 8\]"):
        open_backend(tmp_path / "a.engine", gpu)
    assert gpu.left() == []


def test_a_plan_with_another_result_than_the_manifest_is_refused(backend, gpu):
    gpu.trt.wrong_shape = (7,)
    with pytest.raises(FormatError, match=r"gives codes \[1, 7\]; the manifest promises \[1, 6, 8\]"):
        backend.encode(images(1))


def test_too_little_memory_for_a_batch_size_drops_the_others_first(backend, gpu):
    backend.encode(images(1))
    gpu.cuda.refusals = {"cuMemAlloc": NO_MEMORY}  # of the first allocation
    np.testing.assert_array_equal(backend.encode(images(2)), tiny_engine.encode(images(2)))
    assert gpu.left().count("executable") == 1


@pytest.mark.parametrize("reason", ["OutOfMemory (Requested size was 512 bytes.)", "out of memory", "no"])
def test_tensorrts_own_lack_of_memory_drops_the_other_sizes_too(backend, gpu, monkeypatch, reason):
    backend.encode(images(1))
    plans, real, tried = backend._plans, backend._plans.execution_context, []

    def once_refused(*arguments):
        tried.append(reason)
        if len(tried) == 1:
            plans._logger.errors.append(reason)
            raise plans.refused("makes no execution context")
        return real(*arguments)

    monkeypatch.setattr(plans, "execution_context", once_refused)
    if reason == "no":
        with pytest.raises(BackendError, match="makes no execution context"):
            backend.encode(images(2))
    else:
        np.testing.assert_array_equal(backend.encode(images(2)), tiny_engine.encode(images(2)))
        assert gpu.left().count("executable") == 1


def test_too_little_memory_for_a_launch_leaves_the_backend_usable(backend, gpu):
    backend.encode(images(1))
    gpu.cuda.refusals = {"cuGraphLaunch": NO_MEMORY}
    with pytest.raises(BackendError, match="too little memory"):
        backend.encode(images(1))
    np.testing.assert_array_equal(backend.encode(images(1)), tiny_engine.encode(images(1)))


def test_too_little_memory_in_the_middle_of_a_call_leaves_the_backend_usable(backend, gpu):
    backend.encode(images(4))
    gpu.cuda.free_bytes = 1
    with pytest.raises(
        BackendError, match=r"cuda:0 has too little memory left \(cuMemAlloc\); use a smaller"
    ):
        backend.encode(images(6))  # four, which are recorded, and two, which are not
    gpu.cuda.free_bytes = 1 << 40
    np.testing.assert_array_equal(backend.encode(images(6)), tiny_engine.encode(images(6)))


def test_after_a_fault_on_the_gpu_there_are_no_more_results(backend, gpu):
    backend.encode(images(1))
    gpu.trt.faults = True
    with pytest.raises(BackendError, match="cuEventSynchronize failed on cuda:0: CUDA_ERROR_ILLEGAL_ADDRESS"):
        backend.encode(images(1, seed=1))
    gpu.trt.faults, gpu.cuda.dead = False, 0
    with pytest.raises(BackendError, match=r"the GPU failed before .*ILLEGAL_ADDRESS.*open the engine again"):
        backend.encode(images(1, seed=1))


def test_a_capture_that_the_driver_refuses_leaves_the_stream_usable(backend, gpu):
    backend.map(np.ones((1, D), np.float32))
    at = len(gpu.cuda.log)
    backend.encode(images(1))
    offset = gpu.cuda.log[at:].index("cuGraphInstantiate")
    gpu.cuda.failures = {len(gpu.cuda.log) + offset: CAPTURING}
    with pytest.raises(BackendError, match="cuGraphInstantiate failed on cuda:0: error 900"):
        backend.encode(images(2))
    np.testing.assert_array_equal(backend.encode(images(2)), tiny_engine.encode(images(2)))


def test_an_interrupt_lets_no_work_go_on_in_buffers_that_are_filled_anew(backend, gpu, monkeypatch):
    backend.encode(images(1))

    def interrupt(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("psp_rt.cuda.work.Event.synchronize", interrupt)
        with pytest.raises(KeyboardInterrupt):
            backend.encode(images(1, seed=1))
    assert all(not getattr(content, "queue", None) for content in gpu.cuda._content.values())
    np.testing.assert_array_equal(backend.encode(images(1, seed=2)), tiny_engine.encode(images(1, seed=2)))


def test_missing_bindings_say_what_to_install(gpu, tmp_path, monkeypatch):
    path = fake_gpu.engine_with_plans(tmp_path / "a.engine")
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(DeviceError, match=r"cuda-bindings cannot be loaded .*pip install 'cuda-bindings"):
        Translator(path, backend="tensorrt")


def test_a_gpu_that_cannot_be_used_is_a_device_error(gpu, tmp_path):
    gpu.cuda.gpus = 0
    with pytest.raises(DeviceError, match="cuda:0 cannot be used: cuDeviceGet failed on cuda:0: error 101"):
        open_backend(tmp_path / "a.engine", gpu)
