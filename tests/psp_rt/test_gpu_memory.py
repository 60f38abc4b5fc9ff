"""Memory of results on the GPU: when it is freed, and who waits for that."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import numpy as np
import pytest

from psp_rt import BackendError, Translator
from psp_rt.cuda.gpu_memory import GpuMemory
from psp_rt.cuda.work import Stream
from tests.models import tiny_engine
from tests.models.tiny_engine import HEIGHT, OUT_HEIGHT, OUT_WIDTH, WIDTH
from tests.stand_ins import gpu as fake_gpu
from tests.stand_ins.cuda import BAD_HANDLE, NO_MEMORY
from tests.stand_ins.library import Library


@pytest.fixture
def translator(library, tmp_path):
    with Translator(fake_gpu.engine_with_plans(tmp_path / "a.engine"), color="rgb") as opened:
        opened.run(pixels())
        yield opened


def pixels(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def expected(seed=0):
    return tiny_engine.generate(tiny_engine.encode(pixels(seed)[None]))[0]


def made_in(library, translator, stream=None):
    """Return a finished result of a stream, which the translator has let go of."""
    result = translator.run(library.array(pixels()), stream=library.stream if stream is None else stream)
    library.synchronize()
    translator.run(pixels())
    return result


def calls_of_dropping(library, dropped):
    """Return the calls that free, allocate and wait, where the last one who uses a result lets go of it."""
    start = len(library.cuda.log)
    dropped.clear()
    gc.collect()
    words = ("Free", "Alloc", "Synchronize")
    return [name for name in library.cuda.log[start:] if any(word in name for word in words)]


def test_a_result_made_in_a_stream_is_freed_in_its_order_and_nobody_waits(translator, library):
    result = made_in(library, translator)
    address, capsule = result.pointer, result.__dlpack__(stream=library.stream)
    seen = np.zeros((OUT_HEIGHT, OUT_WIDTH, 3), np.uint8)
    library.cuda.enqueue(
        library.stream,
        lambda: library.cuda.copy(seen.ctypes.data, address, seen.nbytes, device=[address]),
    )
    dropped = [result, capsule]
    del result, capsule
    assert calls_of_dropping(library, dropped) == ["cuMemFreeAsync"]
    assert library.cuda.holds(address, 1)  # for the copy, which is still to come
    library.synchronize()
    np.testing.assert_array_equal(seen, expected())
    assert not library.cuda.holds(address, 1)


@pytest.mark.parametrize("stream", [None, 7])
def test_memory_that_was_not_had_leaves_nothing_to_wait_for(translator, library, stream):
    library.cuda.refusals = {"cuMemAlloc": NO_MEMORY, "cuMemAllocAsync": NO_MEMORY}
    start = len(library.cuda.log)
    with pytest.raises(BackendError, match="too little memory"):
        GpuMemory(0, 64, stream=library.stream if stream else None)
    gc.collect()
    log = library.cuda.log[start:]
    assert "cuEventSynchronize" not in log[log.index("cuEventDestroy") :]  # the event is gone by then


def test_it_is_there_before_it_is_written_and_freed_after(translator, library):
    for seed in range(5):  # each dropped at once
        translator.run(library.array(pixels(seed)), stream=library.stream)
    library.synchronize()
    assert library.cuda.dead == 0


def test_it_is_not_freed_before_work_that_fills_it_from_elsewhere(library):
    other, content = Library(library.cuda), np.arange(5, dtype=np.uint8)
    memory = GpuMemory(0, 5, stream=library.stream)
    address = memory.address
    other.order(library.stream)
    library.synchronize()
    library.cuda.enqueue(other.stream, lambda: other._write(address, content))
    with memory.device.current():
        memory.ready.record(Stream(memory.device, other.stream))
    del memory
    library.synchronize()
    assert not library.cuda.holds(address, 1)
    other.close()  # would fail, had the memory been gone before the write


def test_without_a_stream_or_a_pool_freeing_waits_as_ever(translator, library):
    dropped = [translator.run(library.array(pixels()))]
    translator.run(pixels())
    assert calls_of_dropping(library, dropped) == ["cuEventSynchronize", "cuMemFree"]
    library.cuda.pools = False
    dropped = [made_in(library, translator)]
    assert calls_of_dropping(library, dropped) == ["cuEventSynchronize", "cuMemFree"]


def test_a_handle_that_means_another_stream_in_each_thread_gives_no_order(library):
    dropped = [GpuMemory(0, 5, stream=2)]
    assert calls_of_dropping(library, dropped) == ["cuEventSynchronize", "cuMemFree"]


# cuMemFree of ordinary memory waits for all work; of a pool's it does not.
WAITING = ["cuEventSynchronize", "cuMemAlloc", "cuMemFree", "cuMemFree"]


def test_what_was_lent_to_another_stream_is_freed_when_all_has_ended(translator, library):
    other = Library(library.cuda)
    result = made_in(library, translator)
    dropped = [result, result.__dlpack__(stream=other.stream)]
    del result
    assert calls_of_dropping(library, dropped) == WAITING
    other.close()


@pytest.mark.parametrize(
    "use", [lambda result: result.__cuda_array_interface__, lambda result: result.__dlpack__(stream=-1)]
)
def test_what_was_lent_to_who_names_no_stream_is_freed_when_all_has_ended(translator, library, use):
    result = made_in(library, translator)
    dropped = [result, use(result)]
    del result
    assert calls_of_dropping(library, dropped) == WAITING


def test_what_is_dropped_in_a_recording_of_its_stream_is_no_part_of_it(translator, library):
    dropped = [made_in(library, translator)]
    library._call("cuStreamBeginCapture", library.stream, 1)
    assert calls_of_dropping(library, dropped) == WAITING
    graph = library._call("cuStreamEndCapture", library.stream)
    assert library.cuda._content[graph] == []
    library._call("cuGraphDestroy", graph)


def test_a_stream_that_is_gone_all_the_same_costs_a_wait_and_no_memory(translator, library):
    address = (result := made_in(library, translator)).pointer
    library.cuda.refusals["cuMemFreeAsync"] = BAD_HANDLE
    dropped = [result]
    del result
    assert calls_of_dropping(library, dropped) == ["cuMemFreeAsync", *WAITING]
    assert not library.cuda.holds(address, 1)


def test_a_stream_that_came_as_an_object_lives_as_long_as_the_result(translator, library):
    gone = []

    class OwnStream(SimpleNamespace):
        def __del__(self):
            gone.append(self.ptr)

    result = made_in(library, translator, OwnStream(ptr=library.stream))
    gc.collect()
    assert gone == []
    del result
    gc.collect()
    assert gone == [library.stream]


def test_what_was_only_copied_to_the_host_is_freed_in_order(translator, library):
    result = made_in(library, translator)
    np.testing.assert_array_equal(result.to_host(), expected())
    dropped = [result]
    del result
    assert calls_of_dropping(library, dropped) == ["cuMemFreeAsync"]


def test_too_little_memory_in_the_pool_leaves_the_translator_usable(translator, library):
    made_in(library, translator)
    library.cuda.refusals["cuMemAllocAsync"] = NO_MEMORY
    with pytest.raises(BackendError, match=r"too little memory left \(cuMemAllocAsync\)"):
        made_in(library, translator)
    np.testing.assert_array_equal(made_in(library, translator).to_host(), expected())


def test_memory_that_did_not_come_into_being_frees_nothing(library):
    library.cuda.refusals["cuMemAllocAsync"] = NO_MEMORY
    before = list(library.cuda.live.values())
    with pytest.raises(BackendError, match="too little memory"):
        GpuMemory(0, 5, stream=library.stream)
    gc.collect()
    assert "cuMemFreeAsync" not in library.cuda.log
    assert list(library.cuda.live.values()) == before
