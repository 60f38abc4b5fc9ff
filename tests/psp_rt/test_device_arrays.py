"""Pictures in GPU memory, in and out, with TensorRT and ONNX Runtime, over a stand-in for the driver."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from psp_rt import (
    BackendError,
    DeviceArray,
    DeviceError,
    FormatError,
    InputError,
    PspError,
    StyleMix,
    Translator,
)
from psp_rt.backends.onnx_runtime import OnnxRuntimeBackend
from tests.models import tiny_engine
from tests.models.tiny_engine import HEIGHT, OUT_HEIGHT, OUT_WIDTH, WIDTH, D, L
from tests.stand_ins import gpu as fake_gpu
from tests.stand_ins.driver import ILLEGAL_ADDRESS, LEGACY_STREAM, RELEASES

pytest.importorskip("cuda.core", reason="needs cuda-core: pip install cuda-core")
from tests.stand_ins.library import DlpackArray, InterfaceArray, Library, OldDlpackArray, TorchArray

SIZE = (OUT_HEIGHT, OUT_WIDTH, 3)
KINDS = [DlpackArray, OldDlpackArray, InterfaceArray]


@pytest.fixture
def tensorrt(library, tmp_path):
    opened = Translator(fake_gpu.engine_with_plans(tmp_path / "a.engine"), color="rgb")
    yield opened
    opened.close()


@pytest.fixture
def onnxruntime(library, engine_paths, monkeypatch):
    """A translator that believes to be on CUDA; its sessions are on the CPU, as the stand-in's memory is."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(OnnxRuntimeBackend, "_place", lambda backend: ("cpu", 0))
    with Translator(engine_paths["rgb"], device="cpu", backend="onnxruntime", color="rgb") as opened:
        opened._turns._backend.device = "cuda:0"
        yield opened


@pytest.fixture(params=["tensorrt", "onnxruntime"])
def translator(request):
    return request.getfixturevalue(request.param)


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, HEIGHT, WIDTH, 3), dtype=np.uint8)


def expected(pictures):
    return tiny_engine.generate(tiny_engine.encode(pictures.reshape(-1, HEIGHT, WIDTH, 3)))


# What comes out.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("streamed", [False, True])
def test_out_takes_the_results(translator, library, kind, streamed):
    stream = library.stream if streamed else None
    given, out = library.array(pixels(6), kind), library.empty(6, *SIZE, kind=kind)
    assert translator.run(given, out=out, stream=stream) is out  # more than max_batch, so in two parts
    found = library.read(out) if streamed else library.peek(out)  # without a stream it is there at once
    np.testing.assert_array_equal(found, expected(pixels(6)))
    one = library.empty(*SIZE, kind=kind)
    translator.run(library.array(pixels(), kind), out=one, stream=stream)
    np.testing.assert_array_equal(library.read(one), expected(pixels())[0])


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tensor_gives_a_tensor_of_its_own_library(translator, library, monkeypatch, streamed):
    library.as_torch(monkeypatch)
    given = library.array(pixels(2), TorchArray)
    found = translator.run(given, stream=library.stream if streamed else None)
    assert isinstance(found, TorchArray)
    content = library.read(found) if streamed else library.peek(found)
    np.testing.assert_array_equal(content, expected(pixels(2)))


def test_new_memory_is_allocated_for_the_callers_stream(tensorrt, library, monkeypatch):
    """PyTorch reuses memory in the order of the stream that is current when it is allocated."""
    library.as_torch(monkeypatch)
    other = Library(library.cuda)
    library.array(pixels(), TorchArray)
    for stream in (other.stream, 0, library.stream):
        tensorrt.run(library.array(pixels(), TorchArray), stream=stream)
    tensorrt.run(library.array(pixels(), TorchArray))
    assert library.allocated_in == [other.stream, LEGACY_STREAM, library.stream, library.stream]
    other.close()


def test_an_array_of_cupy_gives_one_of_cupy(tensorrt, library, monkeypatch):
    kind = type("ndarray", (TorchArray,), {"__module__": "cupy"})
    del TorchArray.new_empty  # restored below
    try:
        streams = []

        class ExternalStream:
            def __init__(self, handle):
                streams.append(handle)

            __enter__ = __exit__ = lambda *_: None

        cupy = SimpleNamespace(
            cuda=SimpleNamespace(ExternalStream=ExternalStream),
            empty=lambda shape, dtype: library.empty(*shape, kind=kind),
        )
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        found = tensorrt.run(library.array(pixels(), kind), stream=library.stream)
        assert (type(found), streams) == (kind, [library.stream])
        np.testing.assert_array_equal(library.read(found), expected(pixels())[0])
    finally:
        TorchArray.new_empty = new_empty


new_empty = TorchArray.new_empty


def test_other_libraries_must_pass_out(tensorrt, library):
    with pytest.raises(InputError, match=r"DlpackArray; pass out=, a uint8 array \[10, 14, 3\]"):
        tensorrt.run(library.array(pixels()))


@pytest.mark.parametrize(("count", "styles"), [(1, 3), (3, 2), (2, 7)])
def test_several_styles_are_those_of_pictures_on_the_host(translator, library, count, styles):
    given, style = pixels(count), StyleMix.random(list(range(styles)), layers="2-")
    wanted = translator.run(given, style=style)
    for stream in (None, library.stream):
        out = library.empty(count, styles, *SIZE)
        translator.run(library.array(given), style=style, out=out, stream=stream)
        np.testing.assert_array_equal(library.read(out), wanted)


@pytest.mark.parametrize("kind", ["gray", "labels"])
def test_one_channel_pictures_may_come_without_a_channel_axis(gpu, library, tmp_path, kind):
    path = fake_gpu.engine_with_plans(tmp_path / "a.engine", kind)
    given = np.random.default_rng(0).integers(0, 5, (2, HEIGHT, WIDTH), dtype=np.uint8)
    with Translator(path, color="rgb") as translator:
        wanted = translator.run(given)
        for form in (given, given[..., None]):
            both, one = library.empty(2, *SIZE), library.empty(*SIZE)
            translator.run(library.array(form), out=both)
            translator.run(library.array(form[1]), out=one)
            np.testing.assert_array_equal(library.peek(both), wanted)
            np.testing.assert_array_equal(library.peek(one), wanted[1])


def test_no_picture_crosses_to_the_host(tensorrt, library):
    given, out = library.array(pixels()), library.empty(*SIZE)
    tensorrt.run(given, out=out)
    before = len(library.cuda.log)
    tensorrt.run(given, out=out)
    copies = [name for name in library.cuda.log[before:] if "Memcpy" in name]
    assert copies == ["cuMemcpyDtoDAsync"] * 2  # to and from the graph's buffers


# Streams.


def test_with_a_stream_nothing_waits_and_later_work_finds_the_results(tensorrt, library):
    given, out = library.array(pixels()), library.empty(*SIZE)
    tensorrt.run(given, out=out, stream=library.stream)  # captures
    library.synchronize()
    before = len(library.cuda.log)
    for seed in range(3):
        tensorrt.run(library.array(pixels(seed=seed)), out=out, stream=library.stream)
    calls = library.cuda.log[before:]
    # The stream that a call launches in is the caller's.
    assert not [name for name in calls if name == "cuStreamSynchronize"]
    np.testing.assert_array_equal(library.read(out), expected(pixels(seed=2))[0])


def test_without_a_stream_the_arrays_own_is_waited_for(translator, library):
    for kind in KINDS:
        out = library.empty(*SIZE, kind=kind)
        library.synchronize()
        given = library.array(pixels(seed=1), kind)  # waits in the library's stream
        translator.run(given, out=out)
        np.testing.assert_array_equal(library.peek(out), expected(pixels(seed=1))[0])


@pytest.mark.parametrize("version", [2, 3])
def test_an_array_without_a_stream_belongs_to_the_default_stream(translator, library, version):
    given = library.empty(HEIGHT, WIDTH, 3, kind=InterfaceArray, stream=None, version=version)
    content, out = pixels(), library.empty(*SIZE)
    library.launch(lambda: library.write(given.address, content), LEGACY_STREAM)
    translator.run(given, out=out)
    np.testing.assert_array_equal(library.peek(out), expected(content)[0])


def test_calls_in_different_streams_do_not_touch_each_others_buffers(tensorrt, library):
    other, results = Library(library.cuda), []
    for seed in range(6):
        maker = (library, other)[seed % 2]
        out = maker.empty(*SIZE)
        tensorrt.run(maker.array(pixels(seed=seed)), out=out, stream=maker.stream)
        results.append((maker, out, seed))
        if seed == 3:
            np.testing.assert_array_equal(tensorrt.run(pixels()), expected(pixels())[0])
    for maker, out, seed in reversed(results):
        np.testing.assert_array_equal(maker.read(out), expected(pixels(seed=seed))[0])
    other.close()


@pytest.mark.parametrize("several", [False, True])
def test_a_style_that_changes_waits_until_the_gpu_has_read_it(tensorrt, library, several):
    seeds = [range(start, start + 10) if several else start for start in range(3)]
    styles = [StyleMix.random(of, layers="2-") for of in seeds]
    shape = (10, *SIZE) if several else SIZE
    outs = [library.empty(*shape) for _ in styles]
    for style, out in zip(styles, outs, strict=True):
        tensorrt.run(library.array(pixels()), style=style, out=out, stream=library.stream)
    for style, out in zip(styles, outs, strict=True):
        np.testing.assert_array_equal(library.read(out), tensorrt.run(pixels(), style=style))
    assert library.cuda.faults == 0


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
def test_a_stream_may_come_in_every_librarys_form(tensorrt, library, form):
    out = library.empty(*SIZE)
    tensorrt.run(library.array(pixels()), out=out, stream=form(library.stream))
    np.testing.assert_array_equal(library.read(out), expected(pixels())[0])


def test_the_default_stream_is_a_stream_too(tensorrt, library):
    for number in (0, 1, 2, SimpleNamespace(handle=ctypes.c_void_p(0))):  # the last is Numba's
        out = library.empty(*SIZE)
        tensorrt.run(library.array(pixels()), out=out, stream=number)
        library._call("cuStreamSynchronize", number if number == 2 else LEGACY_STREAM)
        np.testing.assert_array_equal(library.peek(out), expected(pixels())[0])


@pytest.mark.parametrize("stream", [-1, True, "stream", object(), SimpleNamespace(handle=None)])
def test_what_is_not_a_stream_is_refused(translator, library, stream):
    with pytest.raises(InputError, match=r"stream is .*; expected the handle of a CUDA stream as an int"):
        translator.run(library.array(pixels()), stream=stream, out=library.empty(*SIZE))


def test_a_stream_of_another_context_names_the_way_to_share_one(tensorrt, library):
    library.synchronize()
    library.cuda.to_other_context(library.stream)
    out = library.empty(*SIZE)
    with pytest.raises(InputError, match=r"another CUDA context.*import pycuda\.autoprimaryctx"):
        tensorrt.run(library.array(pixels()), out=out, stream=library.stream)
    with pytest.raises(InputError, match="the stream that the picture names belongs to another CUDA context"):
        tensorrt.run(library.array(pixels(), InterfaceArray), out=out)
    assert tensorrt.run(pixels()).shape == SIZE


def test_a_stream_that_is_being_captured_is_refused(tensorrt, library):
    given, out = library.empty(HEIGHT, WIDTH, 3), library.empty(*SIZE)
    library.synchronize()
    mode = sys.modules["cuda.bindings.driver"].CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    library._call("cuStreamBeginCapture", library.stream, mode)
    with pytest.raises(InputError, match="stream is being captured"):
        tensorrt.run(given, out=out, stream=library.stream)
    library._call("cuGraphDestroy", library._call("cuStreamEndCapture", library.stream))


def test_a_stream_for_pictures_on_the_host_is_refused(translator, picture):
    with pytest.raises(InputError, match="stream= goes with pictures in GPU memory"):
        translator.run(picture, stream=1)


# How long memory lives.


def test_an_input_is_kept_until_the_gpu_has_read_it(tensorrt, library):
    released = []

    class Watched(DlpackArray):
        def __del__(self):
            released.append(self.address)
            library.free(self)

    out, other = library.empty(*SIZE), library.empty(*SIZE)
    tensorrt.run(library.array(pixels()), out=other)  # captures, which waits
    tensorrt.run(library.array(pixels(seed=1), Watched), out=out, stream=library.stream)
    tensorrt.run(library.array(pixels()), out=other, stream=library.stream)
    gc.collect()
    assert released == []  # nothing has run yet
    np.testing.assert_array_equal(library.read(out), expected(pixels(seed=1))[0])
    tensorrt.run(pixels())
    gc.collect()
    assert len(released) == 1


def test_closing_waits_for_work_in_flight(tensorrt, library):
    out = library.empty(*SIZE)
    tensorrt.run(library.array(pixels()), out=out, stream=library.stream)
    tensorrt.close()
    np.testing.assert_array_equal(library.read(out), expected(pixels())[0])


def test_a_size_that_makes_room_is_not_taken_from_under_its_work(tensorrt, library):
    given = [library.array(pixels(count)) for count in (1, 2, 3, 4)]
    outs = [library.empty(count, *SIZE) for count in (1, 2, 3, 4)]
    for round_ in range(2):  # captured, and then at work all four
        for array, out in zip(given, outs, strict=True):
            tensorrt.run(array, out=out, stream=library.stream)
        if round_ == 0:
            library.synchronize()
    style = StyleMix(np.ones((2, L, D), np.float32), layers="2-")  # known, so that nothing is mapped
    tensorrt.run(given[0], style=style, out=library.empty(1, 2, *SIZE), stream=library.stream)
    for count, out in zip((1, 2, 3, 4), outs, strict=True):
        np.testing.assert_array_equal(library.read(out), expected(pixels(count)))


def test_many_calls_leave_no_more_than_a_few(tensorrt, library):
    out, given = library.empty(*SIZE), library.array(pixels())

    def run(times):
        for _ in range(times):
            tensorrt.run(given, out=out, stream=library.stream)
            tensorrt.run(given, out=out)
            library.synchronize()

    run(3)
    before = len(library.cuda.live)
    run(30)
    assert len(library.cuda.live) == before


def test_threads_take_turns(translator, library):
    found, given, outs = {}, {}, {}
    for seed in range(6):
        given[seed], outs[seed] = library.array(pixels(seed=seed)), library.empty(*SIZE)

    def work(seed):
        translator.run(given[seed], out=outs[seed])
        found[seed] = library.peek(outs[seed])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    for seed, result in found.items():
        np.testing.assert_array_equal(result, expected(pixels(seed=seed))[0])


# What is refused.


def test_bgr_is_not_swapped_on_the_gpu(gpu, library, tmp_path):
    path = fake_gpu.engine_with_plans(tmp_path / "a.engine")
    refused = pytest.raises(InputError, match=r"color='bgr'.*open it with color='rgb'")
    with Translator(path) as translator, refused:
        translator.run(library.array(pixels()))


@pytest.mark.parametrize(
    "shape", [(HEIGHT + 1, WIDTH, 3), (HEIGHT, WIDTH), (3, HEIGHT, WIDTH), (HEIGHT, WIDTH, 4)]
)
def test_another_size_is_refused_and_never_resized(translator, library, shape):
    with pytest.raises(InputError, match=r"expected \[16, 12, 3\], \[N, 16, 12, 3\]: .*nothing is resized"):
        translator.run(library.empty(*shape), out=library.empty(*SIZE))


@pytest.mark.parametrize("kind", [DlpackArray, InterfaceArray])
def test_gaps_are_refused_with_the_way_to_close_them(tensorrt, library, kind):
    out = library.empty(*SIZE)
    strided = library.empty(HEIGHT, WIDTH, 3, kind=kind, strides=(1, HEIGHT, HEIGHT * WIDTH))
    with pytest.raises(InputError, match=r"strides \[1, 16, 192\].*tensor\.contiguous\(\) in PyTorch"):
        tensorrt.run(strided, out=out)
    tensorrt.run(library.empty(HEIGHT, WIDTH, 3, kind=kind, strides=(36, 3, 1)), out=out)


def test_another_type_is_refused(translator, library):
    memory = library.empty(4, HEIGHT, WIDTH, 3).address
    given = DlpackArray(library, memory, (HEIGHT, WIDTH, 3), dtype=np.float32)
    with pytest.raises(InputError, match="the picture has dtype float32; expected uint8"):
        translator.run(given, out=library.empty(*SIZE))


@pytest.mark.parametrize("kind", [DlpackArray, InterfaceArray])
def test_another_gpu_names_both(translator, library, kind):
    given = library.empty(HEIGHT, WIDTH, 3, kind=kind, index=1)
    library.cuda.to_other_gpu(given.address)
    with pytest.raises(InputError, match=r"the picture is on cuda:1 and this translator on cuda:0; move"):
        translator.run(given, out=library.empty(*SIZE))


def test_memory_of_another_context_names_the_way_to_share_one(translator, library):
    given = library.empty(HEIGHT, WIDTH, 3)
    library.cuda.to_other_context(given.address)
    with pytest.raises(InputError, match=r"memory of another CUDA context.*import pycuda\.autoprimaryctx"):
        translator.run(given, out=library.empty(*SIZE))


def test_an_address_outside_of_the_gpu_is_refused(translator, library):
    out = library.empty(*SIZE)
    for given in (
        DeviceArray.from_pointer(0x1234, (HEIGHT, WIDTH, 3)),
        DlpackArray(library, 0x1234, (HEIGHT, WIDTH, 3)),
    ):
        with pytest.raises(InputError, match="the picture is at 0x1234, which is not GPU memory"):
            translator.run(given, out=out)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (lambda library: np.empty(SIZE, np.uint8), r"out is .*ndarray|out .*cuda:0|out cannot be read"),
        (lambda library: object(), r"out is object; expected a uint8 array on cuda:0"),
        (lambda library: library.empty(9, 14, 3), r"\[10, 14, 3\], got \[9, 14, 3\]"),
        (lambda library: library.empty(*SIZE, kind=InterfaceArray, read_only=True), "out is read-only"),
        (lambda library: library.empty(*SIZE, read_only=True), "out is read-only"),
    ],
)
def test_an_out_that_does_not_fit_is_refused(translator, library, out, message):
    with pytest.raises(InputError, match=message):
        translator.run(library.array(pixels()), out=out(library))


def test_an_out_inside_the_input_is_refused(translator, library):
    given = library.array(pixels())
    with pytest.raises(InputError, match="out shares memory with the picture"):
        translator.run(given, out=DeviceArray.from_pointer(given.address + 8, SIZE))


def test_lists_and_encode_say_what_to_pass(translator, library):
    given = library.array(pixels())
    for call in (lambda: translator.run([given, given]), lambda: translator.encode(given)):
        with pytest.raises(InputError, match=r"run\(\).*one or a batch as one array"):
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

    with pytest.raises(InputError, match=r"the picture cannot be read through DLPack .*: can't export"):
        translator.run(library.array(pixels(), Stubborn), out=library.empty(*SIZE))


# Failures.


def test_after_a_fault_on_the_gpu_there_are_no_more_results(tensorrt, library, gpu):
    given, out = library.array(pixels()), library.empty(*SIZE)
    tensorrt.run(given, out=out)
    gpu.trt.faults = True
    tensorrt.run(given, out=out, stream=library.stream)
    gpu.cuda.fail_with(ILLEGAL_ADDRESS)  # as soon as the work is done, for which nobody waited
    with pytest.raises(PspError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        tensorrt.run(given, out=out)
    gpu.trt.faults = False
    gpu.cuda.fail_with(0)


def test_wherever_the_driver_fails_it_is_an_error(gpu, library, tmp_path):
    path = fake_gpu.engine_with_plans(tmp_path / "a.engine")
    given, out = library.array(pixels(), InterfaceArray), library.empty(*SIZE, kind=InterfaceArray)
    library.synchronize()
    before = gpu.left()

    def calls_of(fail_at: int | None = None) -> tuple[list[str], str]:
        """Return the driver's calls of a run, and its error."""
        with Translator(path, color="rgb", device="cuda") as translator:
            start, error = len(gpu.cuda.log), ""
            if fail_at is not None:
                gpu.cuda.fail_call(start + fail_at, ILLEGAL_ADDRESS)
            try:
                translator.run(given, out=out, stream=library.stream)
            except PspError as found:
                error = str(found)
            calls = gpu.cuda.log[start:]
        library.synchronize()
        return calls, error

    survived = set()
    for at, name in enumerate(calls_of()[0]):
        if any(word in name for word in (*RELEASES, "ThreadExchange", "LaunchHostFunc")):
            continue
        error = calls_of(fail_at=at)[1]
        known = name.removesuffix("WithFlags") in error or "not GPU memory" in error or "cannot be" in error
        assert known or not error, name
        survived |= set() if error else {name}
        assert gpu.left() == before, name
    # For a context: memory of pools has none. And what cuda-core asks for an array's properties.
    assert survived <= {"cuPointerGetAttribute", "cuPointerGetAttributes"}


# ONNX Runtime.


def test_a_failing_run_is_a_backend_error(onnxruntime, library, monkeypatch):
    class Broken:
        def io_binding(self):
            raise RuntimeError("out of memory")

        def run(self, *_):
            raise RuntimeError("out of memory")

    monkeypatch.setitem(onnxruntime._turns._backend._sessions, "generator", Broken())
    for call in (
        lambda: onnxruntime.run(pixels()),
        lambda: onnxruntime.run(library.array(pixels()), out=library.empty(*SIZE)),
    ):
        with pytest.raises(BackendError, match="failed in the generator on cuda:0: out of memory"):
            call()


def test_another_shape_than_the_manifests_is_refused(onnxruntime, library, monkeypatch):
    from psp_rt.backends import onnx_runtime

    real = onnx_runtime.graph_ports

    def other(manifest, name):
        inputs, (output,) = real(manifest, name)
        wrong = type(output)(name=output.name, dtype=output.dtype, shape=(7,))
        return inputs, [wrong if name == "encoder" else output]

    monkeypatch.setattr(onnx_runtime, "graph_ports", other)
    for call in (
        lambda: onnxruntime.run(pixels()),
        lambda: onnxruntime.run(library.array(pixels()), out=library.empty(*SIZE)),
    ):
        with pytest.raises(FormatError, match=r"encoder\.onnx gave \[1, 6, 8\]; .* \[1, 7\]"):
            call()


@pytest.mark.parametrize("module", ["cuda.bindings.driver", "cuda.core.utils"])
def test_missing_bindings_say_what_to_install(onnxruntime, library, monkeypatch, module):
    given, out = library.array(pixels()), library.empty(*SIZE)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, module, None)
        with pytest.raises(DeviceError, match=r"pip install 'cuda-bindings.* cuda-core"):
            onnxruntime.run(given, out=out)


# DeviceArray.


def test_memory_of_a_cpp_host_comes_and_goes_by_its_address(translator, library):
    memory, out = library.array(pixels()), library.empty(*SIZE)
    given = DeviceArray.from_pointer(memory.address, (HEIGHT, WIDTH, 3), stream=library.stream)
    into = DeviceArray.from_pointer(out.address, SIZE, owner=out)
    assert translator.run(given, out=into) is into
    np.testing.assert_array_equal(library.peek(out), expected(pixels())[0])
    assert into.__cuda_array_interface__["data"] == (out.address, False)
    assert (into.shape, into.dtype) == (SIZE, np.uint8)
    assert "[10, 14, 3]" in repr(into)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, (1, 2)), "the address is 0; expected an int, such as"),
        (("x", (1, 2)), "the address is 'x'"),
        ((5, ()), r"the shape is \(\); expected positive sizes"),
        ((5, (0, 2)), "the shape is"),
    ],
)
def test_an_invalid_pointer_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        DeviceArray.from_pointer(*values)
