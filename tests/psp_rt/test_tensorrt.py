"""The TensorRT backend, on a stand-in for TensorRT that checks what it is told, and one for the driver."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from psp_rt import BackendError, DeviceError, EngineFile, FormatError, StyleMix, Translator
from psp_rt.backends.backend import Styles
from psp_rt.backends.tensorrt.backend import SIZES_KEPT, TensorRtBackend
from psp_rt.build import BuildOptions, BuildRequest, build
from psp_rt.errors import PspError
from tests.models import tiny_engine
from tests.models.tiny_engine import HEIGHT, WIDTH, D, L
from tests.stand_ins import gpu as fake_gpu
from tests.stand_ins.driver import CAPTURING, ILLEGAL_ADDRESS, NO_MEMORY, RELEASES
from tests.stand_ins.gpu import TARGET
from tests.stand_ins.tensorrt_runtime import Context

VERSIONS = ["8.6.1", "10.13.3.9", "11.0.0.114"]


@pytest.fixture(params=VERSIONS)
def every_version(request, monkeypatch):
    return fake_gpu.install(monkeypatch, request.param)


def open_plans(path, gpu):
    with EngineFile.open(path) as engine:
        target = f"nvidia-h200-sm90-tensorrt-{gpu.trt.__version__}"
        return TensorRtBackend.open(engine, device="cuda:0", target=target)


def open_backend(path, gpu, **settings):
    return open_plans(fake_gpu.engine_with_plans(path, **settings), gpu)


@pytest.fixture
def backend(gpu, tmp_path):
    opened = open_backend(tmp_path / "a.engine", gpu)
    yield opened
    opened.close()
    assert gpu.left() == []


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


def mix(count):
    rng = np.random.default_rng(count)
    codes, reference = rng.integers(-4, 5, (2, count, L, D)).astype(np.float32)
    return codes, reference, rng.integers(0, 2, (count, L)).astype(np.float32)


def some_styles(count, seed=0):
    rng = np.random.default_rng(seed)
    reference = rng.integers(-4, 5, (count, L, D)).astype(np.float32)
    return Styles(reference=reference, weights=rng.integers(0, 2, (count, L)).astype(np.float32))


def expected(pictures, styles):
    """Return what the tiny engine makes of images [N, H, W, 3] and K styles, [N * K, H, W, 3]."""
    codes = np.repeat(tiny_engine.encode(pictures), len(styles), axis=0)
    moved = np.tile(styles.weights, (len(pictures), 1))[:, :, None] == 1
    reference = np.tile(styles.reference, (len(pictures), 1, 1))
    return tiny_engine.generate(np.where(moved, reference, codes))


# What it computes.


def test_every_graph_gives_its_arithmetic_in_every_version(every_version, tmp_path):
    backend = open_backend(tmp_path / "a.engine", every_version)
    for count in (2, 3):  # two execution contexts of one engine
        np.testing.assert_array_equal(backend.encode(images(count)), tiny_engine.encode(images(count)))
    z = np.ones((3, D), np.float32)
    np.testing.assert_array_equal(backend.map(z), tiny_engine.map_z(z))
    codes, reference, weights = mix(2)
    mixed = np.where(weights[:, :, None] == 1, reference, codes)
    np.testing.assert_array_equal(backend.generate(codes, reference, weights), tiny_engine.generate(mixed))
    styles = some_styles(2)
    found = backend.translate(images(2), styles, max_batch=4)
    np.testing.assert_array_equal(found, expected(images(2), styles))
    backend.close()
    assert every_version.left() == []


@pytest.mark.parametrize(
    ("count", "mixed"), [(1, 1), (3, 1), (1, 4), (2, 3), (3, 4), (20, 1), (1, 11), (3, 9)]
)
def test_every_number_of_images_and_styles_gives_its_arithmetic(gpu, tmp_path, count, mixed):
    backend = open_backend(tmp_path / "a.engine", gpu, batches=(1, 1, 8))
    for max_batch in (3, 8):
        for seed in range(2):  # captured, and replayed with other values
            given, styles = images(count, seed), some_styles(mixed, seed)
            found = backend.translate(given, styles, max_batch=max_batch)
            np.testing.assert_array_equal(found, expected(given, styles))
    backend.close()
    assert gpu.left() == []


def test_a_translator_runs_a_fitting_plan_and_says_so(gpu, tmp_path, picture, caplog):
    caplog.set_level("INFO", "psp_rt")
    path = fake_gpu.engine_with_plans(tmp_path / "a.engine")
    with Translator(path, color="rgb") as translator:
        assert (translator.device, translator.backend, translator.precision) == ("cuda:0", "tensorrt", "fp32")
        wanted = tiny_engine.generate(tiny_engine.encode(picture[None]))[0]
        np.testing.assert_array_equal(translator.run(picture), wanted)
        variants = translator.run(picture, style=StyleMix.random([1, 2, 3], layers="2-"))
        assert variants.shape == (3, *wanted.shape)
    message = caplog.messages[-1]
    for fact in ("runs on cuda:0, TensorRT 10.13.3.9, fp32", "NVIDIA H200", TARGET):
        assert fact in message
    assert gpu.left() == []


def test_an_engine_without_its_graphs_runs_from_its_plans(gpu, tmp_path, picture):
    path, small = fake_gpu.engine_with_plans(tmp_path / "a.engine"), tmp_path / "b.engine"
    build(BuildRequest(engine=path, options=BuildOptions(), output=small, strip_onnx=True))
    with Translator(small) as translator:
        assert translator.backend == "tensorrt"
        assert translator.run(picture).shape == (10, 14, 3)
    with pytest.raises(FormatError, match=r"asked for"):
        Translator(small, device="cpu")


def test_a_generator_only_engine_has_no_encoder_to_load(gpu, tmp_path):
    backend = open_backend(tmp_path / "a.engine", gpu, kind=None)
    assert backend.generate(*mix(1)).shape == (1, 10, 14, 3)
    backend.close()
    assert gpu.left() == []


def test_results_are_the_callers_to_keep(backend):
    for call in (backend.encode, lambda given: backend.translate(given, some_styles(1), max_batch=4)):
        first = call(images(1))
        kept = first.copy()
        call(images(1, seed=1))
        np.testing.assert_array_equal(first, kept)


# Graphs, styles and batches.


def test_each_size_is_captured_once_and_then_one_launch(backend, gpu):
    for count in (1, 2, 1, 2, 1):
        backend.encode(images(count))
    assert (gpu.cuda.calls["cuGraphInstantiateWithFlags"], gpu.cuda.calls["cuGraphLaunch"]) == (2, 5)
    styles = some_styles(3)
    backend.translate(images(1), styles, max_batch=4)
    before = len(gpu.cuda.log)
    backend.translate(images(1, seed=1), styles, max_batch=4)
    calls = gpu.cuda.log[before:]
    assert calls.count("cuGraphLaunch") == 1
    assert [call for call in calls if "Memcpy" in call] == ["cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync"]


def test_a_style_is_uploaded_only_when_it_changes(gpu, tmp_path, picture):
    style = StyleMix(np.ones((L, D), np.float32), layers="2-")
    with Translator(fake_gpu.engine_with_plans(tmp_path / "a.engine"), color="rgb") as translator:

        def uploads(given):
            before = gpu.cuda.calls["cuMemcpyHtoDAsync"]
            found = translator.run(picture, style=given)
            np.testing.assert_array_equal(found, translator.generate(translator.encode(picture), given))
            return gpu.cuda.calls["cuMemcpyHtoDAsync"] - before

        translator.run(picture)
        counts = [uploads(given) for given in (style, style, None, style, style)]
        assert [count > min(counts) for count in counts] == [True, False, True, True, False]
        style.reference[:] = -1  # an array of the caller's
        assert uploads(style) == max(counts)


def test_seeds_of_the_same_style_are_mapped_once(gpu, tmp_path, picture):
    style = StyleMix.random([1, 2], layers="2-")
    with Translator(fake_gpu.engine_with_plans(tmp_path / "a.engine")) as translator:
        for _ in range(3):
            translator.run(picture, style=style)
    # Each network runs once before it is captured.
    assert [name for name, _ in gpu.trt.computed].count("mapping") == 2


def test_the_size_unused_for_longest_makes_room(gpu, tmp_path):
    backend = open_backend(tmp_path / "a.engine", gpu, batches=(1, 1, 8))
    for count in range(1, SIZES_KEPT + 1):
        backend.encode(images(count))
    backend.encode(images(1))  # used again, so 2 is the oldest now
    backend.encode(images(5))
    assert gpu.cuda.live.count("executable") == SIZES_KEPT
    captured = gpu.cuda.calls["cuGraphInstantiateWithFlags"]
    backend.encode(images(1))
    assert gpu.cuda.calls["cuGraphInstantiateWithFlags"] == captured
    np.testing.assert_array_equal(backend.encode(images(2)), tiny_engine.encode(images(2)))
    assert gpu.cuda.calls["cuGraphInstantiateWithFlags"] == captured + 1
    backend.close()
    assert gpu.left() == []


def test_a_batch_above_the_plans_largest_is_split(backend, gpu):
    np.testing.assert_array_equal(backend.encode(images(10)), tiny_engine.encode(images(10)))
    # Each size runs once before its capture.
    assert [batch for _, batch in gpu.trt.computed] == [4, 4, 4, 2, 2]


def test_a_batch_below_the_plans_smallest_is_filled_up(gpu, tmp_path):
    backend = open_backend(tmp_path / "a.engine", gpu, batches=(3, 3, 4))
    for count in (4, 1, 5, 3):
        np.testing.assert_array_equal(backend.encode(images(count)), tiny_engine.encode(images(count)))
    for count, mixed in ((1, 1), (2, 1), (1, 2), (4, 1), (1, 4)):
        styles = some_styles(mixed)
        found = backend.translate(images(count), styles, max_batch=4)
        np.testing.assert_array_equal(found, expected(images(count), styles))
    assert {batch for _, batch in gpu.trt.computed} == {3, 4}
    backend.close()
    assert gpu.left() == []


def test_all_graphs_of_a_backend_share_one_block_for_activations(backend, gpu):
    backend.encode(images(1))
    backend.generate(*mix(2))
    backend.map(np.ones((1, D), np.float32))
    contexts = [thing for thing in gpu.trt.alive if type(thing).__name__ == "Context"]
    assert len(contexts) == 3
    assert len({(context.device_memory, context.memory_size) for context in contexts}) == 1
    assert contexts[0].memory_size == 5000  # the generator's, the largest


@pytest.mark.parametrize("batches", [(1, 1, 8), (1, 1, 1)])
def test_more_styles_than_fit_at_once_encode_each_image_once(gpu, tmp_path, batches, engine_paths):
    style = StyleMix.random(list(range(10)), layers="2-")
    path = fake_gpu.engine_with_plans(tmp_path / "a.engine", batches=batches)
    with Translator(engine_paths["rgb"], device="cpu", color="rgb") as plain:
        wanted = plain.run(images(2), style=style)
    with Translator(path, color="rgb", max_batch=4) as translator:
        translator.run(images(2), style=style)
        gpu.trt.computed.clear()
        np.testing.assert_array_equal(translator.run(images(2), style=style), wanted)
    generated = [size for name, size in gpu.trt.computed if name == "generator"]
    assert sum(size for name, size in gpu.trt.computed if name == "encoder") == 2
    assert (sum(generated), max(generated)) == (20, min(4, batches[2]))


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


def test_a_clone_that_does_not_fit_leaves_the_original(backend, gpu):
    gpu.cuda.set_free_bytes(100)
    with pytest.raises(BackendError, match="too little memory left"):
        backend.clone()
    gpu.cuda.set_free_bytes()
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


def test_closing_releases_everything_and_twice_is_allowed(gpu, tmp_path):
    backend = open_backend(tmp_path / "a.engine", gpu)
    backend.encode(images(1))
    backend.translate(images(1), some_styles(1), max_batch=4)
    backend.close()
    backend.close()
    assert gpu.left() == []


def test_a_release_that_fails_does_not_keep_the_others(gpu, tmp_path):
    backend = open_backend(tmp_path / "a.engine", gpu)
    backend.encode(images(1))
    gpu.cuda.refuse("cuGraphExecDestroy", 1)
    with pytest.raises(BackendError, match="cuGraphExecDestroy failed on cuda:0"):
        backend.close()
    assert gpu.cuda.live == ["executable"]
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
        with pytest.raises(BackendError, match="closed; open the engine again"):
            call()


# Errors.


def test_wherever_the_driver_fails_it_is_an_error_and_nothing_is_left(gpu, tmp_path):
    path = fake_gpu.engine_with_plans(tmp_path / "a.engine")

    def work():
        backend = open_plans(path, gpu)
        try:
            backend.encode(images(1))
            backend.translate(images(1), some_styles(2), max_batch=4)
        finally:
            backend.close()

    start = len(gpu.cuda.log)
    work()
    log = gpu.cuda.log[start:]
    closing = len(log) - 1 - log[::-1].index("cuMemcpyDtoHAsync")
    passed_over = (*RELEASES, "ThreadExchange", "LaunchHostFunc")  # the last is TensorRT's
    tried = [at for at, name in enumerate(log[:closing]) if not any(word in name for word in passed_over)]
    for status in (NO_MEMORY, ILLEGAL_ADDRESS):
        for at in tried:
            gpu.cuda.fail_call(len(gpu.cuda.log) + at, status)
            name = log[at].removesuffix("WithFlags")
            try:
                work()
                message = "tried again" if status == NO_MEMORY else ""  # after other graphs made room
            except PspError as error:
                message = str(error)
            assert name in message or "too little memory" in message or message == "tried again", name
            assert gpu.left() == [], name
    assert {"cuMemAlloc", "cuStreamBeginCapture", "cuGraphLaunch", "cuEventSynchronize"} <= set(log)


@pytest.mark.parametrize(
    ("refuses", "message"),
    [
        ("context encoder", "execution context for the encoder on cuda:0: out of persistent memory"),
        ("shape encoder", r"takes no image \[1, 16, 12, 3\] in the encoder"),
        ("address image", "takes no memory for image in the encoder"),
        ("run encoder", r"refused to run in the encoder on cuda:0: no kernel for this GPU\. Use backend"),
        ("capture encoder", "refused to run in the encoder"),
    ],
)
def test_what_tensorrt_refuses_has_its_reason_and_is_no_end(backend, gpu, refuses, message):
    before = gpu.cuda.live.count("device memory")
    gpu.trt.refuses = refuses
    with pytest.raises(BackendError, match=message):
        backend.encode(images(1))
    assert gpu.left().count("Context") == 0
    assert gpu.cuda.live.count("device memory") == before
    assert backend.map(np.ones((1, D), np.float32)).shape == (1, D)
    gpu.trt.refuses = ""
    np.testing.assert_array_equal(backend.encode(images(1)), tiny_engine.encode(images(1)))


@pytest.mark.parametrize(
    ("refuses", "message"),
    [("runtime", "the runtime"), ("deserialize generator", "the plan of the generator .*of another version")],
)
def test_a_plan_that_tensorrt_refuses_leaves_nothing(gpu, tmp_path, refuses, message):
    gpu.trt.refuses = refuses
    with pytest.raises(BackendError, match=message):
        open_backend(tmp_path / "a.engine", gpu)
    assert gpu.left() == []


def test_with_auto_a_plan_that_does_not_load_gives_way_and_it_is_said(gpu, tmp_path, picture, caplog):
    path = fake_gpu.engine_with_plans(tmp_path / "a.engine")
    gpu.trt.refuses = "deserialize generator"
    with caplog.at_level("WARNING", "psp_rt"), Translator(path) as translator:
        assert translator.device == "cpu"
        assert "the plan of the generator" in translator.runs_on
        assert translator.run(picture).shape == (10, 14, 3)
    assert "the plan of the generator" in caplog.text
    for named in ({"backend": "tensorrt"}, {"device": "cuda"}):
        with pytest.raises(PspError, match="the plan of the generator"):
            Translator(path, **named)


def test_a_plan_with_other_inputs_than_the_manifest_is_refused(gpu, tmp_path):
    gpu.trt.wrong_type = "half"
    with pytest.raises(FormatError, match=r"the plan of the mapping has the input z half \[N, 8\]"):
        open_backend(tmp_path / "a.engine", gpu)
    assert gpu.left() == []


def test_a_plan_with_another_result_than_the_manifest_is_refused(backend, gpu):
    gpu.trt.wrong_shape = (7,)
    with pytest.raises(FormatError, match=r"codes \[1, 7\]; .* \[1, 6, 8\]"):
        backend.encode(images(1))


def test_too_little_memory_for_a_size_drops_the_others_first(backend, gpu):
    backend.encode(images(1))
    backend.translate(images(1), some_styles(1), max_batch=4)
    gpu.cuda.refuse("cuMemAlloc")
    np.testing.assert_array_equal(backend.encode(images(2)), tiny_engine.encode(images(2)))
    assert gpu.cuda.live.count("executable") == 1


@pytest.mark.parametrize("reason", ["OutOfMemory (Requested size was 512 bytes.)", "out of memory", "no"])
def test_tensorrts_own_lack_of_memory_drops_the_other_sizes(backend, gpu, reason):
    backend.encode(images(1))
    gpu.trt.refuses_once = reason
    if reason == "no":
        with pytest.raises(BackendError, match="execution context"):
            backend.encode(images(2))
    else:
        np.testing.assert_array_equal(backend.encode(images(2)), tiny_engine.encode(images(2)))
        assert gpu.cuda.live.count("executable") == 1


def test_too_little_memory_in_a_call_leaves_the_backend_usable(backend, gpu):
    backend.encode(images(4))
    gpu.cuda.refuse("cuGraphLaunch")
    with pytest.raises(BackendError, match="too little memory"):
        backend.encode(images(4))
    gpu.cuda.set_free_bytes(1)
    with pytest.raises(BackendError, match=r"cuda:0 has too little memory left \(cuMemAlloc\)"):
        backend.encode(images(6))  # four, which are captured, and two, which are not
    gpu.cuda.set_free_bytes()
    np.testing.assert_array_equal(backend.encode(images(6)), tiny_engine.encode(images(6)))


@pytest.mark.parametrize("call", ["encode", "translate"])
def test_after_a_fault_on_the_gpu_there_are_no_more_results(backend, gpu, call):
    def run():
        if call == "encode":
            return backend.encode(images(1))
        return backend.translate(images(1), some_styles(1), max_batch=4)

    run()
    gpu.trt.faults = True
    with pytest.raises(BackendError, match="cuEventSynchronize failed on cuda:0: CUDA_ERROR_ILLEGAL_ADDRESS"):
        run()
    gpu.trt.faults = False
    gpu.cuda.fail_with(0)
    with pytest.raises(BackendError, match=r"ILLEGAL_ADDRESS.*open the engine again"):
        run()


def test_a_capture_that_the_driver_refuses_is_an_error(backend, gpu):
    at = len(gpu.cuda.log)
    backend.encode(images(2))
    offset = gpu.cuda.log[at:].index("cuGraphInstantiateWithFlags")
    gpu.cuda.fail_call(len(gpu.cuda.log) + offset, CAPTURING)
    with pytest.raises(BackendError, match=r"cuGraphInstantiate failed on cuda:0: .*900"):
        backend.encode(images(3))


def test_one_picture_runs_in_the_profile_for_one(backend, gpu):
    backend.encode(images(1))
    backend.encode(images(3))
    used = {one.batch: one.active_optimization_profile for one in gpu.trt.alive if isinstance(one, Context)}
    assert used == {1: 0, 3: 1}


def test_after_an_interrupt_no_work_goes_on_in_buffers(backend, gpu, monkeypatch):
    backend.encode(images(1))
    real = backend._plans.device.call

    def interrupt(name, *arguments):
        if name == "cuEventSynchronize" and gpu.cuda.waiting:
            monkeypatch.undo()
            raise KeyboardInterrupt
        return real(name, *arguments)

    run = backend._runs["encoder",][1, 1]
    monkeypatch.setattr(run, "_call", interrupt)
    with pytest.raises(KeyboardInterrupt):
        backend.encode(images(1, seed=1))
    assert gpu.cuda.waiting == 0
    np.testing.assert_array_equal(backend.encode(images(1, seed=2)), tiny_engine.encode(images(1, seed=2)))


def test_missing_bindings_say_what_to_install(gpu, tmp_path, monkeypatch):
    path = fake_gpu.engine_with_plans(tmp_path / "a.engine")
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(DeviceError, match=r"cuda-bindings .*pip install 'cuda-bindings"):
        Translator(path, backend="tensorrt")


def test_a_gpu_that_cannot_be_used_is_a_device_error(gpu, tmp_path):
    path = fake_gpu.engine_with_plans(tmp_path / "a.engine")
    gpu.cuda.set_gpus(0)
    with pytest.raises(DeviceError, match="cuda:0 cannot be used: cuInit failed on cuda:0"):
        open_plans(path, gpu)
