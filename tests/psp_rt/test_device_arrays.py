"""Pictures on the GPU, in and out, on stand-ins for the driver, TensorRT and other libraries."""

from __future__ import annotations

import ctypes
import gc
import threading
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest

from psp_rt import BackendError, DeviceArray, InputError, PspError, StyleMix, Translator
from psp_rt.cuda.device import CudaDevice
from psp_rt.cuda.gpu_memory import GpuMemory
from psp_rt.cuda.work import Resources, Stream
from tests.models import tiny_engine
from tests.models.tiny_engine import HEIGHT, OUT_HEIGHT, OUT_WIDTH, WIDTH, D, L
from tests.stand_ins import gpu as fake_gpu
from tests.stand_ins.cuda import ILLEGAL_ADDRESS, LEGACY_STREAM, NO_MEMORY, OTHER_CONTEXT, RELEASES
from tests.stand_ins.library import DlpackArray, InterfaceArray, Library, OldDlpackArray

KINDS = [DlpackArray, OldDlpackArray, InterfaceArray]


@pytest.fixture(params=[True, False], ids=["with a pool", "without a pool"])
def gpu(monkeypatch, request):
    installed = fake_gpu.install(monkeypatch)
    installed.cuda.pools = request.param
    return installed


@pytest.fixture
def translator(library, tmp_path):
    path = fake_gpu.engine_with_plans(tmp_path / "a.engine")
    opened = Translator(path, color="rgb")
    yield opened
    library.cuda.failures.clear()
    opened.close()


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, HEIGHT, WIDTH, 3), dtype=np.uint8)


def expected(pictures):
    return tiny_engine.generate(tiny_engine.encode(pictures.reshape(-1, HEIGHT, WIDTH, 3)))


# What comes out.


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_on_the_gpu_gives_one_on_the_gpu(translator, library, kind):
    given = pixels()
    found = translator.run(library.array(given, kind))
    assert isinstance(found, DeviceArray)
    assert (found.shape, found.dtype, found.device) == ((OUT_HEIGHT, OUT_WIDTH, 3), np.uint8, "cuda:0")
    np.testing.assert_array_equal(found.to_host(), expected(given)[0])


def test_a_batch_is_an_array_with_one_more_dimension(translator, library):
    given = pixels(6)  # more than max_batch, so in two parts
    found = translator.run(library.array(given))
    np.testing.assert_array_equal(found.to_host(), expected(given))


@pytest.mark.parametrize("kind", KINDS)
def test_out_takes_the_results(translator, library, kind):
    given, out = pixels(2), library.empty(2, OUT_HEIGHT, OUT_WIDTH, 3, kind=kind)
    assert translator.run(library.array(given), out=out) is out
    np.testing.assert_array_equal(library.read(out), expected(given))


@pytest.mark.parametrize(("count", "styles"), [(1, 3), (3, 2), (2, 7)])
def test_several_styles_are_those_of_pictures_on_the_host(translator, library, count, styles):
    given, style = pixels(count), StyleMix.random(list(range(styles)), layers="2-")
    found = translator.run(library.array(given), style=style)
    np.testing.assert_array_equal(found.to_host(), translator.run(given, style=style))
    one = translator.run(library.array(given[0]), style=StyleMix(translator.sample(1), layers="2-"))
    assert one.shape == (OUT_HEIGHT, OUT_WIDTH, 3)


@pytest.mark.parametrize("kind", ["gray", "labels"])
def test_one_channel_pictures_may_come_without_a_channel_axis(gpu, library, tmp_path, kind):
    path = fake_gpu.engine_with_plans(tmp_path / "a.engine", kind)
    given = np.random.default_rng(0).integers(0, 5, (2, HEIGHT, WIDTH), dtype=np.uint8)
    with Translator(path, color="rgb") as translator:
        for form in (given, given[..., None]):
            found = translator.run(library.array(form)).to_host()
            np.testing.assert_array_equal(found, translator.run(given))
            np.testing.assert_array_equal(translator.run(library.array(form[1])).to_host(), found[1])


def test_no_picture_crosses_to_the_host(translator, library):
    given, out = library.array(pixels()), library.empty(OUT_HEIGHT, OUT_WIDTH, 3)
    translator.run(given, out=out)
    library.cuda.log.clear()
    translator.run(given, out=out)
    copies = [name for name in library.cuda.log if "Memcpy" in name]
    assert copies == ["cuMemcpyDtoDAsync"] * 2  # to and from the graph's buffers


# Streams.


def test_with_a_stream_nothing_waits_and_later_work_in_it_finds_the_results(translator, library):
    given, out = library.array(pixels()), library.empty(OUT_HEIGHT, OUT_WIDTH, 3)
    translator.run(given, out=out, stream=library.stream)  # records
    library.synchronize()
    library.cuda.log.clear()
    for seed in range(3):
        given = library.array(pixels(seed=seed))
        translator.run(given, out=out, stream=library.stream)
    assert not [name for name in library.cuda.log if "Synchronize" in name]
    np.testing.assert_array_equal(library.read(out), expected(pixels(seed=2))[0])


def test_without_a_stream_the_arrays_own_is_waited_for_and_the_result_is_there(translator, library):
    for kind in KINDS:
        given = library.array(pixels(), kind)
        out = library.empty(OUT_HEIGHT, OUT_WIDTH, 3)
        library.synchronize()
        given = library.array(pixels(seed=1), kind)  # waits in the library's stream
        translator.run(given, out=out)
        kept = np.empty((OUT_HEIGHT, OUT_WIDTH, 3), np.uint8)
        assert library.cuda.copy(kept.ctypes.data, out.address, kept.nbytes, device=[out.address]) == 0
        np.testing.assert_array_equal(kept, expected(pixels(seed=1))[0])


@pytest.mark.parametrize("named", [{"stream": None}, {"stream": None, "version": 2}])
def test_an_array_that_names_no_stream_is_one_of_the_default_stream(translator, library, named):
    given, content = library.empty(HEIGHT, WIDTH, 3, kind=InterfaceArray, **named), pixels()
    library.synchronize()
    library.cuda.enqueue(LEGACY_STREAM, lambda: library._write(given.address, content))
    np.testing.assert_array_equal(translator.run(given).to_host(), expected(content)[0])


def test_calls_in_different_streams_do_not_touch_each_others_buffers(translator, library):
    other = Library(library.cuda)
    results = []
    for seed in range(6):
        maker = (library, other)[seed % 2]
        given = maker.array(pixels(seed=seed))
        results.append((maker, translator.run(given, stream=maker.stream), seed))
    for maker, result, seed in reversed(results):
        np.testing.assert_array_equal(maker.read(result), expected(pixels(seed=seed))[0])
    del result, results
    other.close()


def test_a_style_that_changes_waits_until_the_gpu_has_read_the_one_before(translator, library):
    styles = [StyleMix(translator.sample(seed), layers="2-") for seed in range(3)]
    results = [
        translator.run(library.array(pixels()), style=style, stream=library.stream) for style in styles
    ]
    for style, result in zip(styles, results, strict=True):
        np.testing.assert_array_equal(library.read(result), translator.run(pixels(), style=style))
    assert library.cuda.faults == []


@pytest.mark.parametrize(
    "form",
    [
        int,
        lambda number: SimpleNamespace(cuda_stream=number),
        lambda number: SimpleNamespace(ptr=number),
        lambda number: SimpleNamespace(handle=number),
        lambda number: SimpleNamespace(handle=SimpleNamespace(value=number)),
        lambda number: SimpleNamespace(__cuda_stream__=lambda: (0, number)),
    ],
)
def test_a_stream_may_come_in_every_librarys_form(translator, library, form):
    result = translator.run(library.array(pixels()), stream=form(library.stream))
    np.testing.assert_array_equal(library.read(result), expected(pixels())[0])


def test_the_default_stream_is_a_stream_too(translator, library):
    for number in (0, 1, SimpleNamespace(handle=ctypes.c_void_p(0))):  # the last is Numba's
        result = translator.run(library.array(pixels()), stream=number)
        np.testing.assert_array_equal(result.to_host(), expected(pixels())[0])


@pytest.mark.parametrize("stream", [-1, True, "stream", object(), SimpleNamespace(handle=None)])
def test_what_is_no_stream_is_refused(translator, library, stream):
    with pytest.raises(InputError, match=r"stream is .*; expected the handle of a CUDA stream as an int"):
        translator.run(library.array(pixels()), stream=stream)


def test_a_stream_of_another_context_names_the_way_to_share_one(translator, library):
    library.cuda.contexts[library.stream] = OTHER_CONTEXT
    with pytest.raises(InputError, match=r"another CUDA context.*import pycuda\.autoprimaryctx"):
        translator.run(library.array(pixels()), stream=library.stream)
    with pytest.raises(InputError, match="the stream that the picture names belongs to another CUDA context"):
        translator.run(library.array(pixels(), InterfaceArray))
    assert translator.run(pixels()).shape == (OUT_HEIGHT, OUT_WIDTH, 3)


def test_a_stream_that_is_being_captured_is_refused(translator, library):
    library.synchronize()
    given = library.empty(HEIGHT, WIDTH, 3)
    library.synchronize()
    library._call("cuStreamBeginCapture", library.stream, 1)
    with pytest.raises(InputError, match="stream is being captured"):
        translator.run(given, stream=library.stream)
    library._call("cuGraphDestroy", library._call("cuStreamEndCapture", library.stream))


def test_a_stream_for_pictures_on_the_host_is_refused(translator, picture):
    with pytest.raises(InputError, match="stream= goes with pictures on a GPU"):
        translator.run(picture, stream=1)


# How long memory lives.


def test_an_input_is_kept_until_the_gpu_has_read_it(translator, library):
    released = []

    class Watched(DlpackArray):
        def __del__(self):
            released.append(self.address)
            library.free(self)

    result = translator.run(library.array(pixels(), Watched), stream=library.stream)
    translator.run(library.array(pixels()), stream=library.stream)
    gc.collect()
    assert released == []  # nothing has run yet
    np.testing.assert_array_equal(library.read(result), expected(pixels())[0])
    translator.run(library.array(pixels()), stream=library.stream)
    gc.collect()
    assert len(released) == 1


def test_a_call_that_waits_lets_go_of_the_inputs_before_it(translator, library):
    released = []

    class Watched(DlpackArray):
        def __del__(self):
            released.append(self.address)

    translator.run(library.array(pixels(), Watched), stream=library.stream)
    translator.run(pixels())
    gc.collect()
    assert len(released) == 1


def test_a_result_that_is_dropped_at_once_is_freed_after_its_work(translator, library):
    memory = library.cuda.live.copy()
    for _ in range(3):
        translator.run(library.array(pixels()), stream=library.stream)
    translator.run(library.array(pixels()))
    library.synchronize()
    assert library.cuda.dead == 0
    results = [kind for at, kind in library.cuda.live.items() if at not in memory and kind == "event"]
    assert len(results) <= 8  # those that the lane keeps for the next calls


def test_memory_that_is_dropped_waits_for_the_work_that_fills_it(library):
    cuda = library.cuda
    memory, content = GpuMemory(0, 5), np.arange(5, dtype=np.uint8)
    address = memory.address
    cuda.enqueue(library.stream, lambda: library._write(address, content))
    with memory.device.current():
        memory.ready.record(Stream(memory.device, library.stream))
    del memory
    assert not cuda.holds(address, 1)
    library.synchronize()  # would fail, had the memory been gone before the write


def test_memory_may_be_dropped_in_the_middle_of_a_recording(translator, library):
    kept = [translator.run(library.array(pixels()))]
    address = kept[0].pointer
    device = CudaDevice(0)
    with closing(device), device.current(), closing(Resources(device)) as made:
        made.captured(made.stream(), kept.clear)
    assert not library.cuda.holds(address, 1)


def test_memory_is_freed_when_the_last_consumer_is_gone(translator, library):
    result = translator.run(library.array(pixels()))
    address = result.pointer
    capsule = result.__dlpack__(stream=library.stream)
    del result
    gc.collect()
    assert library.cuda.holds(address, 1)
    del capsule
    gc.collect()
    assert not library.cuda.holds(address, 1)


def test_a_result_outlives_its_translator(translator, library):
    result = translator.run(library.array(pixels()), stream=library.stream)
    translator.close()
    np.testing.assert_array_equal(result.to_host(), expected(pixels())[0])


def test_closing_waits_for_work_in_flight(translator, library):
    out = library.empty(OUT_HEIGHT, OUT_WIDTH, 3)
    translator.run(library.array(pixels()), out=out, stream=library.stream)
    translator.close()
    np.testing.assert_array_equal(library.read(out), expected(pixels())[0])
    assert library.cuda.faults == []


def test_a_size_that_makes_room_for_another_is_not_taken_from_under_its_work(translator, library):
    given = [library.array(pixels(count)) for count in (1, 2, 3, 4)]
    for round_ in range(2):  # recorded, and then at work all four
        results = [translator.run(array, stream=library.stream) for array in given]
        if round_ == 0:
            library.synchronize()
    style = StyleMix(np.ones((2, L, D), np.float32), layers="2-")  # known, so that nothing is mapped
    translator.run(given[0], style=style, stream=library.stream)
    for count, result in zip((1, 2, 3, 4), results, strict=True):
        np.testing.assert_array_equal(library.read(result), expected(pixels(count)))


def test_many_calls_leave_no_more_memory_than_a_few(translator, library):
    out = library.empty(OUT_HEIGHT, OUT_WIDTH, 3)
    given = library.array(pixels())

    def run(times):
        for _ in range(times):
            translator.run(given, out=out, stream=library.stream)
            translator.run(given, stream=library.stream)
            library.synchronize()

    run(3)
    before = len(library.cuda.live)
    run(50)
    assert len(library.cuda.live) == before


def test_threads_take_turns(translator, library):
    found = {}

    def work(seed):
        found[seed] = translator.run(library.array(pixels(seed=seed))).to_host()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, result in found.items():
        np.testing.assert_array_equal(result, expected(pixels(seed=seed))[0])
    assert len(found) == 6


# What is refused.


def test_bgr_is_not_swapped_on_the_gpu(gpu, library, tmp_path):
    path = fake_gpu.engine_with_plans(tmp_path / "a.engine")
    refused = pytest.raises(InputError, match=r"opened with color='bgr'.*open it with color='rgb'")
    with Translator(path) as translator, refused:
        translator.run(library.array(pixels()))


@pytest.mark.parametrize(
    "shape", [(HEIGHT + 1, WIDTH, 3), (HEIGHT, WIDTH), (3, HEIGHT, WIDTH), (HEIGHT, WIDTH, 4)]
)
def test_another_size_is_refused_and_never_resized(translator, library, shape):
    with pytest.raises(
        InputError, match=r"expected \[16, 12, 3\], \[N, 16, 12, 3\]: there, nothing is resized"
    ):
        translator.run(library.empty(*shape))


def test_gaps_are_refused_with_the_way_to_close_them(translator, library):
    strided = library.empty(HEIGHT, WIDTH, 3, kind=InterfaceArray, strides=(1, HEIGHT, HEIGHT * WIDTH))
    with pytest.raises(InputError, match=r"strides \[1, 16, 192\].*tensor\.contiguous\(\) in PyTorch"):
        translator.run(strided)
    assert translator.run(library.empty(HEIGHT, WIDTH, 3, kind=InterfaceArray, strides=(36, 3, 1))).ndim == 3


def test_another_type_is_refused(translator, library):
    with pytest.raises(InputError, match="the picture has dtype float32; expected uint8"):
        translator.run(library.empty(HEIGHT, WIDTH, 3, kind=InterfaceArray, typestr="<f4"))


@pytest.mark.parametrize("kind", [DlpackArray, InterfaceArray])
def test_another_gpu_names_both(translator, library, kind):
    given = library.empty(HEIGHT, WIDTH, 3, kind=kind, index=1)
    library.cuda.placed[given.address] = (1, OTHER_CONTEXT)
    with pytest.raises(InputError, match=r"the picture is on cuda:1 and this translator on cuda:0; move"):
        translator.run(given)


def test_memory_of_another_context_names_the_way_to_share_one(translator, library):
    given = library.empty(HEIGHT, WIDTH, 3)
    library.cuda.placed[given.address] = (0, OTHER_CONTEXT)
    with pytest.raises(InputError, match=r"memory of another CUDA context.*import pycuda\.autoprimaryctx"):
        translator.run(given)


def test_an_address_that_is_none_is_refused(translator, library):
    given = library.empty(HEIGHT, WIDTH, 3)
    given.address = 0x1234
    with pytest.raises(InputError, match="the picture is at 0x1234, which is no memory of a GPU"):
        translator.run(given)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (
            lambda library: np.empty((OUT_HEIGHT, OUT_WIDTH, 3), np.uint8),
            "out is ndarray; expected a uint8 array",
        ),
        (
            lambda library: library.empty(9, 14, 3),
            r"out must be a uint8 array \[10, 14, 3\], got \[9, 14, 3\]",
        ),
    ],
)
def test_an_out_that_does_not_fit_is_refused(translator, library, out, message):
    with pytest.raises(InputError, match=message):
        translator.run(library.array(pixels()), out=out(library))


def test_an_out_that_is_read_only_or_the_input_is_refused(translator, library):
    fixed = library.empty(OUT_HEIGHT, OUT_WIDTH, 3, kind=InterfaceArray)
    fixed.settings["data"] = (fixed.address, True)
    with pytest.raises(InputError, match="out is read-only"):
        translator.run(library.array(pixels()), out=fixed)
    given = library.array(pixels())
    inside = DeviceArray.from_pointer(given.address + 8, (OUT_HEIGHT, OUT_WIDTH, 3))
    with pytest.raises(InputError, match="out shares memory with the picture"):
        translator.run(given, out=inside)


def test_lists_and_encode_say_what_to_pass(translator, library):
    given = library.array(pixels())
    for call in (lambda: translator.run([given, given]), lambda: translator.encode(given)):
        with pytest.raises(InputError, match=r"taken by run\(\) alone, one or a batch as one array"):
            call()


def test_a_backend_on_the_cpu_says_what_is_needed(library, engine_paths):
    message = r"need device='cuda'.* runs on cpu with .*tensor\.cpu\(\)\.numpy"
    refused = pytest.raises(InputError, match=message)
    with Translator(engine_paths["rgb"], device="cpu", color="rgb") as translator, refused:
        translator.run(library.array(pixels()))


def test_a_library_that_will_not_lend_is_an_error_with_its_reason(translator, library):
    class Stubborn(DlpackArray):
        def __dlpack__(self, *, stream, max_version=None):
            raise BufferError("can't export tensors that require gradient")

    with pytest.raises(InputError, match="the picture cannot be taken through DLPack: can't export"):
        translator.run(library.array(pixels(), Stubborn))


# Failures.


def test_after_a_fault_on_the_gpu_there_are_no_more_results(translator, library, gpu):
    given = library.array(pixels())
    translator.run(given)
    gpu.trt.faults = True
    translator.run(given, stream=library.stream)
    gpu.cuda.dead = ILLEGAL_ADDRESS  # as soon as the work is done, which nobody waited for
    with pytest.raises(PspError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        translator.run(given)
    gpu.trt.faults, gpu.cuda.dead = False, 0


def test_too_little_memory_for_a_result_leaves_the_translator_usable(translator, library, gpu):
    given = library.array(pixels())
    translator.run(given)
    gpu.cuda.refusals["cuMemAlloc"] = NO_MEMORY
    with pytest.raises(BackendError, match="too little memory left"):
        translator.run(given)
    np.testing.assert_array_equal(translator.run(given).to_host(), expected(pixels())[0])


@pytest.mark.parametrize("streamed", [True, False])
def test_wherever_the_driver_fails_it_is_an_error_and_nothing_is_left(gpu, library, tmp_path, streamed):
    path = fake_gpu.engine_with_plans(tmp_path / "a.engine")
    given = library.array(pixels(), InterfaceArray)
    library.synchronize()
    before = gpu.left()

    def calls_of(fail_at: int | None = None) -> tuple[list[str], str]:
        """Return the driver's calls of a run, and its error."""
        with Translator(path, color="rgb") as translator:
            start = len(gpu.cuda.log)
            gpu.cuda.failures = {} if fail_at is None else {start + fail_at: ILLEGAL_ADDRESS}
            result, error = None, ""
            try:
                result = translator.run(given, stream=library.stream if streamed else None)
            except PspError as found:
                error = str(found)
            calls = gpu.cuda.log[start:]
        del result
        gc.collect()  # what is dropped is freed in the order of the stream
        library.synchronize()
        return calls, error

    survived = set()
    for at, name in enumerate(calls_of()[0]):
        if any(word in name for word in (*RELEASES, "ExchangeStreamCapture")):
            continue
        error = calls_of(fail_at=at)[1]
        assert name in error or "no memory of a GPU" in error or not error, name
        survived |= set() if error else {name}
        assert gpu.left() == before, name
    assert survived == {"cuPointerGetAttribute"}  # for a context: memory of pools has none


# DeviceArray.


def test_memory_of_a_c_host_comes_and_goes_by_its_address(translator, library):
    memory = library.array(pixels())
    out = library.empty(OUT_HEIGHT, OUT_WIDTH, 3)
    given = DeviceArray.from_pointer(memory.address, (HEIGHT, WIDTH, 3), stream=library.stream)
    into = DeviceArray.from_pointer(out.address, (OUT_HEIGHT, OUT_WIDTH, 3), device="cuda:0", owner=out)
    assert translator.run(given, out=into) is into
    np.testing.assert_array_equal(library.read(out), expected(pixels())[0])
    np.testing.assert_array_equal(into.to_host(), expected(pixels())[0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, (1, 2)), "the address is 0; expected an int, such as"),
        (("x", (1, 2)), "the address is 'x'"),
        ((5, ()), r"the shape is \(\); expected sizes from 1 up"),
        ((5, (0, 2)), "the shape is"),
    ],
)
def test_a_pointer_that_means_nothing_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        DeviceArray.from_pointer(*values)
    with pytest.raises(InputError, match="device is 'cpu'; expected a GPU's number, or 'cuda:N'"):
        DeviceArray.from_pointer(5, (1,), device="cpu")


def test_a_device_array_names_its_stream_until_its_content_is_there(translator, library):
    result = translator.run(library.array(pixels()), stream=library.stream)
    interface = result.__cuda_array_interface__
    assert interface == {
        "shape": (OUT_HEIGHT, OUT_WIDTH, 3),
        "typestr": "|u1",
        "data": (result.pointer, False),
        "strides": None,
        "stream": library.stream,
        "version": 3,
    }
    library.synchronize()
    assert result.__cuda_array_interface__["stream"] is None
    assert translator.run(library.array(pixels())).__cuda_array_interface__["stream"] is None


def test_a_consumer_in_another_stream_finds_the_content(translator, library):
    other = Library(library.cuda)
    result = translator.run(library.array(pixels()), stream=library.stream)
    np.testing.assert_array_equal(other.read(result), expected(pixels())[0])
    del result
    other.close()


def test_a_device_array_is_neither_copied_nor_moved_in_silence(translator, library):
    result = translator.run(library.array(pixels()))
    for wish in ({"copy": True}, {"dl_device": (1, 0)}):
        with pytest.raises(BufferError, match=r"to_host\(\)"):
            result.__dlpack__(stream=1, **wish)
    assert result.__dlpack_device__() == (2, 0)
    assert repr(result) == "<DeviceArray uint8 [10, 14, 3] on cuda:0>"
    assert (len(result), result.ndim, result.nbytes) == (10, 3, 420)


def test_a_result_is_an_input_of_another_translator(translator, library):
    result = translator.run(library.array(pixels()), stream=library.stream)
    with pytest.raises(InputError, match=r"has shape \[10, 14, 3\]; expected \[16, 12, 3\]"):
        translator.run(result)


def test_codes_of_a_style_need_not_be_known_on_the_gpu(translator, library):
    style = StyleMix(np.ones((L, D), np.float32), layers="1-")
    found = translator.run(library.array(pixels()), style=style).to_host()
    np.testing.assert_array_equal(found, translator.generate(np.ones((L, D), np.float32)))
