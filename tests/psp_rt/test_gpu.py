"""The promises of the runtime on a real GPU: `make gpu-test`."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from examples import device_arrays
from psp_rt import BackendError, DeviceArray, InputError, StyleMix, Translator
from psp_rt.build import BuildOptions, BuildRequest, build
from psp_rt.cuda.device import CudaDevice
from psp_rt.hardware.probe import CUDA_PROVIDER, onnxruntime_providers, probe_driver
from tests.models import tiny_engine, tiny_models
from tests.models.tiny_engine import HEIGHT, OUT_HEIGHT, OUT_WIDTH, WIDTH

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def a_gpu():
    problem = probe_driver().problem
    if problem:
        pytest.skip(f"needs an NVIDIA GPU: {problem}")
    pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings: pip install cuda-bindings")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A tiny engine, with plans where TensorRT is installed."""
    path = tiny_engine.build(tmp_path_factory.mktemp("gpu") / "a.engine")
    try:
        build(BuildRequest(engine=path, options=BuildOptions(batches=(1, 1, 4))))
    except BackendError as error:
        if "cannot be loaded" not in str(error):
            raise
    return path


@pytest.fixture(scope="module", params=["tensorrt", "onnxruntime"])
def translator(request, path):
    backend = request.param
    if backend == "tensorrt":
        pytest.importorskip("tensorrt", reason="needs TensorRT: pip install 'psp_rt[tensorrt]'")
    elif CUDA_PROVIDER not in (onnxruntime_providers() or ()):
        pytest.skip("needs ONNX Runtime with CUDA: pip install 'psp_rt[cuda]'")
    with Translator(path, device="cuda", backend=backend, color="rgb") as opened:
        yield opened


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, HEIGHT, WIDTH, 3), dtype=np.uint8)


def expected(pictures):
    found = tiny_engine.generate(tiny_engine.encode(pictures.reshape(-1, HEIGHT, WIDTH, 3)))
    return found if pictures.ndim == 4 else found[0]


def free_bytes():
    device = CudaDevice(0)
    with device.current():
        free = device.call("cuMemGetInfo")
    device.close()
    return int(free)


@pytest.mark.parametrize("count", [1, 3, 6])
def test_every_batch_gives_what_its_arithmetic_says(translator, count):
    for seed in range(2):  # recorded, then replayed
        given = pixels(count, seed=seed)
        np.testing.assert_array_equal(translator.run(given), expected(given))


def test_one_captured_graph_gives_the_same_as_three_calls(translator):
    style = StyleMix.random([1, 2, 3], layers="2-")
    together = translator.run(pixels(2), style=style)
    np.testing.assert_array_equal(together, translator.generate(translator.encode(pixels(2)), style))


def test_more_styles_than_max_batch_are_those_of_parts(translator):
    style = StyleMix.random(list(range(9)), layers="2-")
    wanted = translator.generate(translator.encode(pixels(2)), style)
    np.testing.assert_array_equal(translator.run(pixels(2), style=style), wanted)


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_every_frame_of_a_stream_gets_its_own_result(translator, in_flight):
    frames = [pixels(seed=seed) for seed in range(50)]
    found = list(translator.stream(iter(frames), in_flight=in_flight))
    np.testing.assert_array_equal(found, [expected(frame) for frame in frames])


def test_repeats_are_bit_identical(translator):
    results = [translator.run(pixels(2)) for _ in range(100)]
    assert all(np.array_equal(result, results[0]) for result in results)


def test_threads_and_clones_run_beside_each_other(translator):
    found, clones = {}, [translator.clone() for _ in range(4)]

    def work(number):
        for count in (1, 2, 4, 1):
            given = pixels(count, seed=number)
            found[number, count] = np.array_equal(clones[number % 4].run(given), expected(given))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for clone in clones:
        clone.close()
    assert len(found) == 24
    assert all(found.values())


@pytest.mark.slow
def test_10000_runs_take_no_more_memory_than_100(translator):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a PyTorch with CUDA")
    given = torch.from_numpy(pixels()).cuda()

    def run(times):
        for _ in range(times):
            translator.run(pixels())
            translator.run(given)
        torch.cuda.synchronize()
        gc.collect()

    run(100)
    before = free_bytes()
    run(10_000)
    assert free_bytes() >= before - (1 << 21)  # the driver gives memory in pieces of 2 MiB


@pytest.mark.parametrize("library", ["torch", "cupy", "pycuda"])
def test_arrays_of_other_libraries_come_and_go_without_a_copy_on_the_host(translator, library):
    pytest.importorskip(library)
    for example in device_arrays.EXAMPLES[library]:
        np.testing.assert_array_equal(example(translator, pixels()), expected(pixels()))


def test_torch_cupy_and_pycuda_share_one_process(translator):
    for library in ("torch", "cupy", "pycuda"):
        pytest.importorskip(library)
    for _ in range(3):
        for examples in device_arrays.EXAMPLES.values():
            for example in examples:
                np.testing.assert_array_equal(example(translator, pixels()), expected(pixels()))


def test_streams_keep_their_order_under_load(translator):
    torch = pytest.importorskip("torch")
    streams = [torch.cuda.Stream() for _ in range(3)]
    results = []
    for seed in range(30):
        stream = streams[seed % 3]
        with torch.cuda.stream(stream):
            torch.randn(2048, 2048, device="cuda") @ torch.randn(2048, 2048, device="cuda")  # holds it up
            frame = torch.from_numpy(pixels(seed=seed)).cuda(non_blocking=True)
            results.append(translator.run(frame, stream=stream))
            del frame  # its memory is PyTorch's again at once
    torch.cuda.synchronize()
    for seed, result in enumerate(results):
        np.testing.assert_array_equal(result.cpu().numpy(), expected(pixels(seed=seed)))


def test_a_result_is_the_callers_to_keep(translator):
    torch = pytest.importorskip("torch")
    tensor = translator.run(torch.from_numpy(pixels()).cuda())
    assert isinstance(tensor, torch.Tensor)
    translator.run(torch.from_numpy(pixels(seed=1)).cuda())
    gc.collect()
    np.testing.assert_array_equal(tensor.cpu().numpy(), expected(pixels()))


def test_an_address_on_the_host_is_refused_and_the_gpu_lives_on(translator):
    host = pixels()
    memory = DeviceArray.from_pointer(host.ctypes.data, host.shape)
    with pytest.raises(InputError, match="not GPU memory"):
        translator.run(memory, out=memory)
    assert translator.run(host).shape == (OUT_HEIGHT, OUT_WIDTH, 3)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_plans_stay_near_the_portable_graphs(tmp_path, precision):
    """FP32 within a gray level; FP16 at 40 dB or more."""
    pytest.importorskip("tensorrt", reason="needs TensorRT: pip install 'psp_rt[tensorrt]'")
    from export.checkpoints import load as checkpoints
    from export.engine import Settings, export_engine
    from export.graphs.activations import psnr_db

    tiny_models.write_official(tmp_path / "a.pt")
    path = tmp_path / "a.engine"
    manifest = export_engine(checkpoints.load(tmp_path / "a.pt"), path, Settings(precision=precision))
    build(BuildRequest(engine=path, options=BuildOptions()))
    size = manifest.input
    given = np.random.default_rng(0).integers(0, 256, (4, size.height, size.width, 3), dtype=np.uint8)
    with Translator(path, backend="tensorrt") as plans, Translator(path, device="cpu") as portable:
        assert plans.precision == precision
        found, wanted = plans.run(given), portable.run(given)
    if precision == "fp16":
        assert psnr_db(found, wanted) >= 40
    else:
        assert np.abs(found.astype(int) - wanted).max() <= 1
