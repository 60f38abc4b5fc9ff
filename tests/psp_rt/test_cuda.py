"""The thin layer over NVIDIA's driver calls, on a stand-in for the driver."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from psp_rt.cuda.device import CudaDevice, OutOfMemory
from psp_rt.cuda.work import Resources
from psp_rt.errors import BackendError, DeviceError
from tests.stand_ins.cuda import CAPTURING, NO_MEMORY, FakeCuda


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", fake)
    return fake


@pytest.fixture
def device(cuda):
    opened = CudaDevice(0)
    with opened.current():
        yield opened
    opened.close()
    assert (cuda.live, cuda.retained) == ({}, 0)


def test_bytes_go_to_the_gpu_and_back_in_order(device):
    with Resources(device) as made:
        stream, event = made.stream(), made.event()
        host, back, address = made.pinned_memory(5), made.pinned_memory(5), made.device_memory(5)
        host[:] = [1, 2, 3, 4, 5]
        stream.upload(address, host)
        stream.download(back, address)
        assert back[1] != 2  # nothing has run yet
        event.record(stream)
        event.synchronize()
        np.testing.assert_array_equal(back, [1, 2, 3, 4, 5])
    made.close()
    made.close()


def test_a_graph_runs_when_it_is_launched_and_not_when_it_is_captured(device):
    with Resources(device) as made:
        stream, address = made.stream(), made.device_memory(1)
        host, back = made.pinned_memory(1), made.pinned_memory(1)

        def copy_there_and_back():
            stream.upload(address, host)
            stream.download(back, address)

        graph = made.captured(stream, copy_there_and_back)
        stream.synchronize()
        for value in (7, 9):
            host[0] = value
            assert back[0] != value
            graph.launch(stream)
            stream.synchronize()
            assert back[0] == value
    made.close()


def test_what_cannot_be_captured_is_an_error_and_the_stream_stays_usable(device):
    with Resources(device) as made:
        stream = made.stream()
        with pytest.raises(BackendError, match="cuMemAlloc failed on cuda:0: error 900"):
            made.captured(stream, lambda: made.device_memory(8))
        with pytest.raises(KeyError):
            made.captured(stream, lambda: {}["x"])
        made.captured(stream, lambda: None)
        stream.synchronize()
    made.close()


def test_recordings_of_other_threads_do_not_disturb_and_the_threads_own_stance_comes_back(cuda):
    device = CudaDevice(0)
    cuda.recorded_elsewhere = True  # as by torch.cuda.graph
    with device.current():
        with Resources(device) as made:
            made.device_memory(8)
            with device.current(), device.in_any_capture():
                pass
            made.device_memory(8)
        made.close()
    cuda.cuCtxPushCurrent(1)
    assert cuda.cuMemAlloc(8)[0] == CAPTURING  # outside, the driver's default is in force again
    cuda.cuCtxPopCurrent()
    device.close()


def test_an_empty_handle_for_a_capture_is_an_error(device, cuda, monkeypatch):
    real = FakeCuda._cuStreamEndCapture

    def nothing(*given):
        cuda._release(real(*given), "graph")
        return 0, 0

    with Resources(device) as made:
        stream = made.stream()
        with monkeypatch.context() as patched:
            patched.setattr(FakeCuda, "_cuStreamEndCapture", nothing)
            with pytest.raises(BackendError, match="nothing could be recorded on cuda:0"):
                made.captured(stream, lambda: None)
    made.close()


def test_everything_is_released_where_an_error_comes_in_the_middle(device, cuda):
    cuda.failures = {len(cuda.log) + 2: NO_MEMORY}
    made = Resources(device)

    def make_three():
        with made:
            made.stream()
            made.pinned_memory(8)
            made.device_memory(8)

    with pytest.raises(OutOfMemory, match=r"too little memory left \(cuMemAlloc\); use a smaller"):
        make_three()
    assert cuda.released == ["pinned memory", "stream"]


def test_the_context_that_was_current_is_so_again(device, cuda):
    before, meanwhile = list(cuda._stack), []

    def fail():
        with device.current():
            meanwhile.extend(cuda._stack)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert meanwhile == [*before, 0xC0]
    assert cuda._stack == before


def test_an_error_names_the_call_the_device_and_what_the_driver_says(device, cuda):
    cuda.failures = {len(cuda.log): 700}
    expected = "cuStreamCreate failed on cuda:0: CUDA_ERROR_ILLEGAL_ADDRESS: as the driver says it; see"
    with pytest.raises(BackendError, match=expected):
        Resources(device).stream()
    cuda.failures = {len(cuda.log): CAPTURING}
    with pytest.raises(BackendError, match="cuStreamCreate failed on cuda:0: error 900; see nvidia-smi"):
        Resources(device).stream()


def test_a_call_that_a_driver_has_not_is_an_error(device):
    with pytest.raises(BackendError, match="cuNothing cannot be called on cuda:0"):
        device.call("cuNothing")


def test_a_gpu_that_is_not_there_is_a_device_error(cuda):
    with pytest.raises(DeviceError, match="cuda:3 cannot be used: cuDeviceGet failed on cuda:3: error 101"):
        CudaDevice(3)
    assert cuda.retained == 0


def test_bindings_without_a_driver_are_a_device_error(cuda, monkeypatch):
    def missing(self, flags):
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    monkeypatch.setattr(FakeCuda, "_cuInit", missing)
    with pytest.raises(DeviceError, match=r"cuInit cannot be called on cuda:0 \(Failed to dlopen libcuda"):
        CudaDevice(0)
