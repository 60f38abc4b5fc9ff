"""Streams of frames on a GPU: several at work at once, on clones; on stand-ins for driver and TensorRT."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest

from psp_rt import BackendError, InputError, PspError, StyleMix, Translator
from tests.models import tiny_engine
from tests.models.tiny_engine import HEIGHT, WIDTH
from tests.stand_ins import gpu as fake_gpu


@pytest.fixture
def translator(gpu, tmp_path):
    opened = Translator(fake_gpu.engine_with_plans(tmp_path / "a.engine"), color="rgb")
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


@pytest.mark.parametrize("in_flight", [1, 2, 3, 50])
def test_every_frame_gets_its_own_result_in_order(translator, in_flight):
    given = frames(12)
    found = list(translator.stream(iter(given), in_flight=in_flight))
    np.testing.assert_array_equal(found, expected(given))
    kept = [result.copy() for result in found]  # results are the caller's to keep
    list(translator.stream(frames(8, first=8), in_flight=in_flight))
    np.testing.assert_array_equal(found, kept)


def test_frames_in_flight_run_on_clones_that_end_with_the_stream(translator, gpu):
    translator.run(frames(1)[0])
    before = gpu.left()
    for in_flight, streams in ((1, 1), (2, 2), (3, 3), (20, 4)):
        stream = translator.stream(frames(20), in_flight=in_flight)
        np.testing.assert_array_equal(next(stream), expected(frames(1))[0])
        assert gpu.cuda.live.count("stream") == streams
        stream.close()
        assert gpu.left() == before
        assert gpu.cuda.waiting == 0


def test_two_frames_are_at_work_at_once(translator, gpu, monkeypatch):
    meeting = threading.Barrier(2, timeout=30)
    real, seen = type(gpu.cuda).launch, []

    def launch(cuda, stream, function):
        if len(seen) < 2:  # the first run of either frame
            seen.append(threading.get_ident())
            meeting.wait()
        return real(cuda, stream, function)

    monkeypatch.setattr(type(gpu.cuda), "launch", launch)
    np.testing.assert_array_equal(list(translator.stream(frames(2))), expected(frames(2)))
    assert len(set(seen)) == 2


def test_styles_of_a_stream_are_those_of_run_and_mapped_once(translator, gpu):
    for seeds in (3, [1, 2]):
        style = StyleMix.random(seeds, layers="2-")
        wanted = [translator.run(frame, style=style) for frame in frames(4)]
        gpu.trt.computed.clear()
        np.testing.assert_array_equal(list(translator.stream(frames(4), style=style)), wanted)
        assert [name for name, _ in gpu.trt.computed].count("mapping") <= 1


def test_frames_in_every_form_and_size_come_out_as_from_run(translator, gpu, monkeypatch):
    pytest.importorskip("cuda.core")
    from tests.stand_ins.library import Library, TorchArray

    library = Library(gpu.cuda)
    library.as_torch(monkeypatch)
    on_gpu = library.array(frames(1)[0], TorchArray)
    given = [frames(1)[0], np.stack(frames(3)), np.stack(frames(7)), [frames(1)[0]] * 2, on_gpu]
    plain, three, seven, listed, device = translator.stream(given, in_flight=2)
    for found, count in ((plain[None], 1), (three, 3), (seven, 7), (library.peek(device)[None], 1)):
        np.testing.assert_array_equal(found, expected(frames(count)))
    np.testing.assert_array_equal(listed, expected([frames(1)[0]] * 2))
    library.close()


def test_other_calls_and_streams_may_come_between_the_results(translator):
    first, second, other = frames(5), frames(5, first=20), frames(5, first=40)
    pairs = zip(translator.stream(first), translator.stream(second), strict=True)
    for at, found in enumerate(pairs):
        np.testing.assert_array_equal(translator.run(other[at]), expected([other[at]])[0])
        np.testing.assert_array_equal(found, expected([first[at], second[at]]))


def test_without_memory_for_a_clone_the_stream_goes_on_and_says_so(translator, gpu, caplog):
    translator.run(frames(1)[0])
    gpu.cuda.set_free_bytes(1)
    with caplog.at_level(logging.WARNING, "psp_rt"):
        found = list(translator.stream(frames(6)))
    np.testing.assert_array_equal(found, expected(frames(6)))
    (message,) = caplog.messages
    assert "only 1 frames at work at once: cuda:0 has too little memory" in message
    gpu.cuda.set_free_bytes()


def test_the_error_of_a_frame_is_raised_in_its_place(translator, gpu):
    stream = translator.stream([*frames(2), "no.png", *frames(1)], in_flight=3)
    np.testing.assert_array_equal([next(stream), next(stream)], expected(frames(2)))
    with pytest.raises(InputError, match=r"no\.png"):
        next(stream)
    assert gpu.cuda.waiting == 0
    np.testing.assert_array_equal(list(translator.stream(frames(4))), expected(frames(4)))


def test_what_tensorrt_refuses_is_raised_in_the_frames_place(translator, gpu):
    gpu.trt.refuses = "run generator"
    stream = translator.stream(frames(3))
    with pytest.raises(BackendError, match="refused to run in the generator"):
        next(stream)
    gpu.trt.refuses = ""
    np.testing.assert_array_equal(list(translator.stream(frames(4))), expected(frames(4)))


def test_after_a_fault_on_the_gpu_there_are_no_more_results(translator, gpu):
    translator.run(frames(1)[0])
    gpu.trt.faults = True
    with pytest.raises(BackendError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        next(translator.stream(frames(4), in_flight=1))
    gpu.trt.faults = False
    gpu.cuda.fail_with(0)
    with pytest.raises(BackendError, match=r"open the engine again"):
        translator.run(frames(1)[0])


def test_a_translator_closed_in_a_stream_says_so(translator):
    stream = translator.stream(frames(5), in_flight=1)
    next(stream)
    translator.close()
    with pytest.raises(PspError, match="closed; open the engine again"):
        list(stream)
