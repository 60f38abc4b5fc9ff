"""Frames of a stream whose copies overlap with each other's compute, on stand-ins for driver and TensorRT."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest

from psp_rt import BackendError, EngineFile, InputError, PspError, StyleMix, Translator
from psp_rt.backends.tensorrt.backend import TensorRtBackend
from psp_rt.backends.tensorrt.frames import MOST_LANES
from psp_rt.cuda.work import Event
from tests.models import tiny_engine
from tests.models.tiny_engine import HEIGHT, OUT_HEIGHT, OUT_WIDTH, WIDTH, D, L
from tests.stand_ins import gpu as fake_gpu
from tests.stand_ins.cuda import ILLEGAL_ADDRESS, NO_MEMORY, RELEASES
from tests.stand_ins.gpu import TARGET
from tests.stand_ins.library import Library

ACTIVATIONS = 5000  # bytes, of the stand-in's generator


@pytest.fixture
def path(gpu, tmp_path):
    return fake_gpu.engine_with_plans(tmp_path / "a.engine")


@pytest.fixture
def translator(gpu, path):
    opened = Translator(path, color="rgb")
    yield opened
    gpu.cuda.failures.clear()
    opened.close()
    assert gpu.left() == []


@pytest.fixture
def backend(gpu, path):
    with EngineFile.open(path) as engine:
        opened = TensorRtBackend.open(engine, device="cuda:0", target=TARGET)
    yield opened
    opened.close()
    assert gpu.left() == []


def frames(count, first=0):
    return [
        np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        for seed in range(first, first + count)
    ]


def expected(given):
    return tiny_engine.generate(tiny_engine.encode(np.stack(given)))


def begin(backend, *given):
    """Begin the translation of images without a style."""
    return backend.begin(np.stack(given), np.zeros((1, L, D), np.float32), np.zeros((1, L), np.float32))


def recorded(backend):
    """Record two lanes, so that the next two frames are launched at once."""
    for work in [begin(backend, *frames(1)) for _ in range(2)]:
        work.finish()
    return [lane._lane.stream.handle for lane in backend._frames._idle]


class Gate:
    """Lets a wait for an event begin only when something has happened, or fail if it never does."""

    def __init__(self, monkeypatch):
        self.happened, self.waiting, self.missed = threading.Event(), threading.Event(), []
        real = Event.synchronize

        def synchronize(event):
            self.waiting.set()
            if not self.happened.wait(timeout=60):
                self.missed.append(event)
            real(event)

        monkeypatch.setattr(Event, "synchronize", synchronize)


# The order of what the driver is told.


def test_a_frame_is_uploaded_at_once_computed_in_its_turn_and_then_downloaded(backend, gpu):
    _, lane = recorded(backend)
    first, at = begin(backend, *frames(1)), len(gpu.cuda.trace)
    second = begin(backend, *frames(1, first=1))
    calls = [call[0] for call in gpu.cuda.trace[at:] if lane in call]
    note = "cuEventRecord"  # the end of the compute; that of the reading of the style; the end of all
    assert calls == [
        "cuMemcpyHtoDAsync", "cuStreamWaitEvent", "cuGraphLaunch", note, note, "cuMemcpyDtoHAsync", note,
    ]  # fmt: skip
    assert not [call for call in gpu.cuda.trace[at:] if "Synchronize" in call[0]]  # nothing waits
    for work, seed in ((first, 0), (second, 1)):
        np.testing.assert_array_equal(work.finish(), expected(frames(1, seed)))


def test_the_next_frame_is_uploaded_before_this_one_is_waited_for(translator, gpu, monkeypatch):
    recorded(translator._backend)
    gate, start = Gate(monkeypatch), len(gpu.cuda.log)
    real = type(gpu.cuda)._cuMemcpyHtoDAsync

    def upload(cuda, *given):
        result = real(cuda, *given)
        if gpu.cuda.log[start:].count("cuMemcpyHtoDAsync") == 2:
            gate.happened.set()
        return result

    monkeypatch.setattr(type(gpu.cuda), "_cuMemcpyHtoDAsync", upload)
    stream = translator.stream(frames(2))
    np.testing.assert_array_equal(next(stream), expected(frames(1))[0])
    assert gate.missed == []
    log = gpu.cuda.log[start:]
    second_upload = [at for at, name in enumerate(log) if name == "cuMemcpyHtoDAsync"][1]
    assert second_upload < log.index("cuEventSynchronize")
    np.testing.assert_array_equal(next(stream), expected(frames(1, first=1))[0])


def test_the_next_frame_is_resized_while_this_one_is_waited_for(translator, monkeypatch):
    large = [np.repeat(np.repeat(frame, 3, axis=0), 3, axis=1) for frame in frames(3)]
    wanted = [translator.run(frame) for frame in large]
    recorded(translator._backend)
    gate, real, read = Gate(monkeypatch), translator.__class__._begin, []

    def watch(self, frame, style):
        work = real(self, frame, style)
        read.append(frame)
        if len(read) == 2:
            gate.happened.set()
        return work

    monkeypatch.setattr(Translator, "_begin", watch)
    np.testing.assert_array_equal(list(translator.stream(large)), wanted)
    assert gate.missed == []


def test_no_frame_computes_before_the_one_before_it(backend, gpu):
    recorded(backend)
    first, second = begin(backend, *frames(1)), begin(backend, *frames(1, first=1))
    gpu.trt.computed.clear()
    np.testing.assert_array_equal(second.finish(), expected(frames(1, first=1)))
    # The stand-in does a stream's work only where something waits for it.
    assert gpu.trt.computed == [("encoder", 1), ("generator", 1)] * 2
    np.testing.assert_array_equal(first.finish(), expected(frames(1)))
    assert len(gpu.trt.computed) == 4


def test_a_download_holds_up_no_compute(backend, gpu):
    streams = recorded(backend)
    first, second = begin(backend, *frames(1)), begin(backend, *frames(1, first=1))
    second.finish()
    left = [len(gpu.cuda._content[stream].queue) for stream in streams]
    assert left == [3, 0]  # of the first frame: an event, the download, and the end
    first.finish()


def test_the_first_frame_computes_after_what_other_calls_have_begun(translator, gpu):
    library = Library(gpu.cuda)
    out = library.empty(OUT_HEIGHT, OUT_WIDTH, 3)
    for _ in range(2):  # recorded, and left to work
        translator.run(library.array(frames(1)[0]), out=out, stream=library.stream)
    gpu.trt.computed.clear()
    begin(translator._backend, *frames(1)).abandon()
    # Those two; and the frame's, once before its recording and once from it.
    assert gpu.trt.computed == [("encoder", 1), ("generator", 1)] * 4
    library.close()


def test_other_calls_compute_after_the_frames_at_work(translator, gpu):
    recorded(translator._backend)
    translator.run(frames(1)[0])
    works = [begin(translator._backend, *frames(1, seed)) for seed in range(2)]
    gpu.trt.computed.clear()
    translator.run(frames(1)[0])
    translator.encode(frames(1)[0])
    assert gpu.trt.computed[:6] == [("encoder", 1), ("generator", 1)] * 3
    for seed, work in enumerate(works):
        np.testing.assert_array_equal(work.finish(), expected(frames(1, seed)))


def test_a_size_that_is_new_runs_for_the_first_time_after_the_frames_at_work(translator, gpu):
    recorded(translator._backend)
    work = begin(translator._backend, *frames(1))
    gpu.trt.computed.clear()
    translator.encode(frames(1)[0])
    assert gpu.trt.computed == [("encoder", 1), ("generator", 1), ("encoder", 1), ("encoder", 1)]
    work.finish()


# Results.


@pytest.mark.parametrize("in_flight", [1, 2, 3, 50])
def test_every_frame_gets_its_own_result_in_order(translator, gpu, in_flight):
    given = frames(12)
    found = list(translator.stream(iter(given), in_flight=in_flight))
    np.testing.assert_array_equal(found, expected(given))
    assert gpu.cuda.faults == []


def test_results_are_the_callers_to_keep(translator):
    given = frames(8)
    found = list(translator.stream(given))
    kept = [result.copy() for result in found]
    list(translator.stream(frames(8, first=8)))
    np.testing.assert_array_equal(found, kept)


def test_styles_of_a_stream_are_those_of_run(translator):
    for seeds in (3, [1, 2]):
        style = StyleMix.random(seeds, layers="2-")
        wanted = [translator.run(frame, style=style) for frame in frames(4)]
        np.testing.assert_array_equal(list(translator.stream(frames(4), style=style)), wanted)


def test_frames_in_every_form_and_size_come_out_as_from_run(translator, gpu, tmp_path):
    library = Library(gpu.cuda)
    on_gpu = library.array(frames(1)[0])
    given = [frames(1)[0], np.stack(frames(3)), np.stack(frames(7)), [frames(1)[0]] * 2, on_gpu]
    plain, three, seven, listed, device = translator.stream(given, in_flight=2)
    for found, count in ((plain[None], 1), (three, 3), (seven, 7), (device.to_host()[None], 1)):
        np.testing.assert_array_equal(found, expected(frames(count)))
    np.testing.assert_array_equal(listed, expected([frames(1)[0]] * 2))
    del device, found
    library.close()


def test_a_batch_above_max_batch_is_split_as_by_run(gpu, path):
    with Translator(path, color="rgb", max_batch=2) as translator:
        gpu.trt.computed.clear()
        found = list(translator.stream([np.stack(frames(3))] * 3))
        np.testing.assert_array_equal(found, [expected(frames(3))] * 3)
        assert {batch for _, batch in gpu.trt.computed} == {1, 2}


def test_other_calls_may_come_between_the_results(translator, gpu):
    given, other = frames(6), frames(6, first=20)
    for at, found in enumerate(translator.stream(given)):
        np.testing.assert_array_equal(translator.run(other[at]), expected([other[at]])[0])
        np.testing.assert_array_equal(found, expected([given[at]])[0])
    assert gpu.cuda.faults == []


def test_arrays_on_the_gpu_may_come_between_the_results(translator, gpu):
    library, given = Library(gpu.cuda), frames(5)
    out = library.empty(OUT_HEIGHT, OUT_WIDTH, 3)
    for at, found in enumerate(translator.stream(given)):
        translator.run(library.array(given[at]), out=out, stream=library.stream)  # left to work
        np.testing.assert_array_equal(found, expected([given[at]])[0])
    np.testing.assert_array_equal(library.read(out), expected([given[-1]])[0])
    assert gpu.cuda.faults == []
    library.close()


def test_two_streams_at_once_do_not_touch_each_others_frames(translator):
    first, second = frames(6), frames(6, first=20)
    pairs = zip(translator.stream(first), translator.stream(second), strict=True)
    for at, found in enumerate(pairs):
        np.testing.assert_array_equal(found, expected([first[at], second[at]]))


def test_a_clone_has_lanes_of_its_own(translator):
    with translator.clone() as clone:
        pairs = zip(translator.stream(frames(4)), clone.stream(frames(4, first=20)), strict=True)
        for at, found in enumerate(pairs):
            np.testing.assert_array_equal(found, expected([frames(4)[at], frames(4, first=20)[at]]))


# What it takes.


def test_in_flight_1_has_no_second_lane_and_no_delay(translator, gpu):
    translator.run(frames(1)[0])
    before = gpu.left()
    stream = translator.stream((frame for _ in iter(int, 1) for frame in frames(1)), in_flight=1)
    np.testing.assert_array_equal(next(stream), expected(frames(1))[0])
    stream.close()
    assert gpu.left() == before


def test_in_flight_2_has_two_lanes_on_the_activations_of_all(translator, gpu):
    recorded(translator._backend)
    left = gpu.left()
    assert left.count("stream") == 1 + 2
    assert left.count("executable") == 2
    blocks = [len(gpu.cuda._content[at]) for at, kind in gpu.cuda.live.items() if kind == "device memory"]
    assert blocks.count(ACTIVATIONS) == 1
    list(translator.stream(frames(20)))
    assert gpu.left() == left


def test_there_are_never_more_than_a_few_lanes(translator, gpu):
    list(translator.stream(frames(20), in_flight=20))
    assert gpu.left().count("stream") == 1 + MOST_LANES


def test_a_stream_left_early_gives_its_lanes_back(translator, gpu):
    recorded(translator._backend)
    before = gpu.left()
    for _ in translator.stream(frames(20)):
        break
    assert gpu.left() == before
    assert all(not getattr(content, "queue", None) for content in gpu.cuda._content.values())
    np.testing.assert_array_equal(list(translator.stream(frames(4))), expected(frames(4)))
    assert gpu.left() == before


def test_an_abandoned_frame_is_waited_for_before_its_lane_is_used_again(backend, gpu):
    recorded(backend)
    begin(backend, *frames(1)).abandon()
    works = [begin(backend, *frames(1, first=seed)) for seed in (1, 2)]
    for seed, work in enumerate(works, start=1):
        np.testing.assert_array_equal(work.finish(), expected(frames(1, first=seed)))
    assert gpu.cuda.faults == []


def test_an_abandoned_frame_may_be_dropped_in_the_middle_of_a_recording(backend, gpu):
    recorded(backend)
    work, lane = begin(backend, *frames(1)), backend._lane
    with lane.device.current():
        graph = lane.made.captured(lane.stream, work.abandon)
    assert graph is not None
    assert gpu.cuda.calls["cuThreadExchangeStreamCaptureMode"] >= 2


# Too little memory.


def test_without_memory_for_a_lane_frames_go_one_after_another_and_it_is_said_once(translator, gpu, caplog):
    translator.run(frames(1)[0])
    gpu.cuda.free_bytes = 1
    with caplog.at_level(logging.WARNING, "psp_rt"):
        found = list(translator.stream(frames(6)))
    np.testing.assert_array_equal(found, expected(frames(6)))
    (message,) = caplog.messages
    assert message.startswith("frames go one after another from now on, in_flight=1: cuda:0 has too little")
    gpu.cuda.free_bytes = 1 << 40


def test_lanes_that_no_frame_is_in_make_room_for_other_calls(translator, gpu):
    recorded(translator._backend)
    assert gpu.left().count("stream") == 3
    gpu.cuda.refusals["cuMemAlloc"] = NO_MEMORY
    np.testing.assert_array_equal(translator.run(np.stack(frames(3))), expected(frames(3)))
    assert gpu.left().count("stream") == 1
    np.testing.assert_array_equal(list(translator.stream(frames(4))), expected(frames(4)))


def test_a_lane_with_a_frame_in_it_makes_no_room(translator, gpu):
    stream = translator.stream(frames(3))
    found = [next(stream)]
    with translator._backend._plans.device.current():
        translator._backend._frames.drop_idle()
    found += stream
    np.testing.assert_array_equal(found, expected(frames(3)))


# Errors, interrupts and closing.


def test_the_error_of_a_frame_is_raised_in_its_place(translator, gpu):
    given = [*frames(2), "no.png", *frames(1)]
    stream = translator.stream(given, in_flight=3)
    np.testing.assert_array_equal([next(stream), next(stream)], expected(frames(2)))
    with pytest.raises(InputError, match=r"no\.png cannot be read"):
        next(stream)
    assert all(not getattr(content, "queue", None) for content in gpu.cuda._content.values())
    np.testing.assert_array_equal(list(translator.stream(frames(4))), expected(frames(4)))


def test_what_tensorrt_refuses_is_raised_in_the_frames_place_and_the_lane_is_free_again(translator, gpu):
    gpu.trt.refuses = "run generator"
    stream = translator.stream(frames(3))
    with pytest.raises(BackendError, match="refused to run in the generator"):
        next(stream)
    gpu.trt.refuses = ""
    np.testing.assert_array_equal(list(translator.stream(frames(4))), expected(frames(4)))
    assert gpu.left().count("stream") <= 3


def test_after_a_fault_on_the_gpu_there_are_no_more_results(translator, gpu):
    recorded(translator._backend)
    stream = translator.stream(frames(4))
    next(stream)
    gpu.trt.faults = True
    with pytest.raises(BackendError, match="cuEventSynchronize failed on cuda:0: CUDA_ERROR_ILLEGAL_ADDRESS"):
        next(stream)
    gpu.trt.faults, gpu.cuda.dead = False, 0
    with pytest.raises(BackendError, match=r"the GPU failed before .*open the engine again"):
        translator.run(frames(1)[0])


@pytest.mark.parametrize("where", ["psp_rt.cuda.work.Event.synchronize", "psp_rt.cuda.work.Stream.download"])
def test_after_an_interrupt_no_work_goes_on_in_a_lane_that_is_free(backend, gpu, monkeypatch, where):
    recorded(backend)

    def interrupt(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            begin(backend, *frames(1)).finish()
    assert all(not getattr(content, "queue", None) for content in gpu.cuda._content.values())
    works = [begin(backend, *frames(1, first=seed)) for seed in (1, 2)]
    for seed, work in enumerate(works, start=1):
        np.testing.assert_array_equal(work.finish(), expected(frames(1, first=seed)))


def test_closing_lets_go_of_frames_at_work_and_says_so(gpu, path):
    translator = Translator(path, color="rgb")
    stream = translator.stream(frames(6))
    next(stream)
    translator.close()
    assert gpu.left() == []
    with pytest.raises(PspError, match="closed"):
        list(stream)
    stream.close()
    assert gpu.left() == []


def test_a_frame_of_a_closed_backend_has_no_result_and_touches_nothing(gpu, path):
    translator = Translator(path, color="rgb")
    works = [begin(translator._backend, *frames(1)) for _ in range(2)]
    translator.close()
    calls = len(gpu.cuda.log)
    with pytest.raises(BackendError, match="closed with the frame at work; open the engine again"):
        works[0].finish()
    works[1].abandon()
    assert len(gpu.cuda.log) == calls
    assert gpu.left() == []


def test_closing_waits_for_who_waits_for_a_frame(gpu, path, monkeypatch):
    translator = Translator(path, color="rgb")
    recorded(translator._backend)
    work, found = begin(translator._backend, *frames(1)), []
    gate = Gate(monkeypatch)
    waiting = threading.Thread(target=lambda: found.append(work.finish()))
    waiting.start()
    assert gate.waiting.wait(timeout=60)
    closing = threading.Thread(target=translator.close)
    closing.start()
    closing.join(timeout=0.2)
    assert closing.is_alive()
    gate.happened.set()
    waiting.join()
    closing.join()
    np.testing.assert_array_equal(found[0], expected(frames(1)))
    assert gpu.left() == []


def test_wherever_the_driver_fails_it_is_an_error_and_nothing_is_left(gpu, path):
    def streamed(fail_at=None):
        """Return the driver's calls of a stream of three frames, and its error."""
        translator, error = Translator(path, color="rgb"), ""
        start = len(gpu.cuda.log)
        gpu.cuda.failures = {} if fail_at is None else {start + fail_at: ILLEGAL_ADDRESS}
        try:
            works = [begin(translator._backend, *frames(1, seed)) for seed in range(2)]
            for work in works:
                work.finish()
            begin(translator._backend, *frames(1)).finish()
        except PspError as found:
            error = str(found)
        calls = gpu.cuda.log[start:]
        translator.close()
        gpu.cuda.failures = {}
        return calls, error

    for at, name in enumerate(streamed()[0]):
        if any(word in name for word in (*RELEASES, "ExchangeStreamCapture")):
            continue
        error = streamed(fail_at=at)[1]
        assert name in error, name
        assert gpu.left() == [], name


def test_a_backend_on_a_cpu_begins_nothing_beside_other_work(engine_paths):
    with Translator(engine_paths["rgb"], device="cpu", color="rgb") as translator:
        assert begin(translator._backend, *frames(1)) is None
        np.testing.assert_array_equal(list(translator.stream(frames(4))), expected(frames(4)))
