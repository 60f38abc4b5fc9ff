"""The thin layer over NVIDIA's driver: the real cuda-bindings, over a stand-in for the driver itself."""

from __future__ import annotations

import ast
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from psp_rt import BackendError, DeviceError
from psp_rt.cuda.device import CudaDevice, OutOfMemory, Resources
from psp_rt.hardware.probe import compute_capability, probe_driver
from tests.stand_ins.driver import CAPTURING, ILLEGAL_ADDRESS, NO_MEMORY

SOURCES = sorted((Path(__file__).parents[2] / "psp_rt").rglob("*.py"))


@pytest.fixture
def cuda(gpu):
    return gpu.cuda


@pytest.fixture
def device(cuda):
    opened = CudaDevice(0)
    with opened.current():
        yield opened
    opened.close()
    assert (cuda.live, cuda.retained) == ([], 0)


@pytest.fixture
def made(device):
    resources = Resources(device)
    yield resources
    resources.close()
    resources.close()


def upload(device, address, host, stream):
    device.call("cuMemcpyHtoDAsync", address, host.ctypes.data, host.nbytes, stream)


def download(device, host, address, stream):
    device.call("cuMemcpyDtoHAsync", host.ctypes.data, address, host.nbytes, stream)


def test_bytes_go_to_the_gpu_and_back_in_order(device, made):
    stream, event = made.stream(), made.event()
    host, back, address = made.pinned_memory(5), made.pinned_memory(5), made.device_memory(5)
    host[:] = [1, 2, 3, 4, 5]
    upload(device, address, host, stream)
    download(device, back, address, stream)
    device.call("cuEventRecord", event, stream)
    assert not device.has_passed(event)
    assert not back.any()  # nothing has run yet
    device.call("cuEventSynchronize", event)
    assert device.has_passed(event)
    np.testing.assert_array_equal(back, [1, 2, 3, 4, 5])


def test_a_graph_runs_when_it_is_launched_and_not_when_it_is_captured(device, made):
    stream, address = made.stream(), made.device_memory(1)
    host, back = made.pinned_memory(1), made.pinned_memory(1)

    def copy_there_and_back():
        upload(device, address, host, stream)
        download(device, back, address, stream)

    graph = made.captured(stream, copy_there_and_back)
    device.call("cuStreamSynchronize", stream)
    for value in (7, 9):
        host[0] = value
        assert back[0] != value
        device.call("cuGraphLaunch", graph, stream)
        device.call("cuStreamSynchronize", stream)
        assert back[0] == value


def test_a_failed_capture_is_an_error_and_the_stream_stays_usable(device, made):
    stream = made.stream()
    with pytest.raises(BackendError, match="cuMemAlloc failed on cuda:0: error 900"):
        made.captured(stream, lambda: made.device_memory(8))
    with pytest.raises(KeyError):
        made.captured(stream, lambda: {}["x"])
    made.captured(stream, lambda: None)
    device.call("cuStreamSynchronize", stream)


def test_captures_of_other_threads_do_not_disturb(cuda):
    device = CudaDevice(0)
    cuda.capture_elsewhere(True)  # as by torch.cuda.graph
    with device.current():
        made = Resources(device)
        made.device_memory(8)
        with device.current("RELAXED"):
            pass
        made.device_memory(8)
        made.close()
    # Outside, the driver's default is in force again.
    driver = sys.modules["cuda.bindings.driver"]
    driver.cuCtxPushCurrent(driver.cuDevicePrimaryCtxRetain(0)[1])
    assert int(driver.cuMemAlloc(8)[0]) == CAPTURING
    driver.cuCtxPopCurrent()
    device.close()


def test_memory_may_be_released_in_the_middle_of_a_capture(device, made):
    other = Resources(device)
    other.device_memory(8)

    def release():
        with device.current("RELAXED"):
            other.close()

    made.captured(made.stream(), release)


def test_everything_is_released_after_an_error_in_the_middle(device, cuda):
    cuda.fail_call(len(cuda.log) + 2, NO_MEMORY)

    def make_three():
        with Resources(device) as made:
            made.stream()
            made.pinned_memory(8)
            made.device_memory(8)

    with pytest.raises(OutOfMemory, match=r"cuda:0 has too little memory left .*max_batch"):
        make_three()
    assert cuda.live == []


def test_the_context_that_was_current_is_so_again(device):
    driver = device.driver
    before = int(driver.cuCtxGetCurrent()[1])

    def fail():
        with device.current():
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert int(driver.cuCtxGetCurrent()[1]) == before
    elsewhere = []
    thread = threading.Thread(target=lambda: elsewhere.append(int(driver.cuCtxGetCurrent()[1])))
    thread.start()
    thread.join()
    assert elsewhere == [0]


def test_an_error_names_the_call_the_device_and_the_drivers_reason(made, cuda):
    cuda.fail_call(len(cuda.log), ILLEGAL_ADDRESS)
    with pytest.raises(BackendError, match="cuStreamCreate failed on cuda:0: CUDA_ERROR_ILLEGAL"):
        made.stream()
    cuda.fail_call(len(cuda.log), CAPTURING)
    with pytest.raises(BackendError, match=r"cuStreamCreate failed on cuda:0: .*900"):
        made.stream()


def test_a_call_that_a_driver_does_not_have_is_an_error(device):
    with pytest.raises(BackendError, match="cuNothing cannot be called on cuda:0"):
        device.call("cuNothing")
    with pytest.raises(BackendError, match="cuArrayDestroy cannot be called on cuda:0"):
        device.call("cuArrayDestroy", 0)  # the bindings have it, and the stand-in does not


def test_a_gpu_that_does_not_exist_is_a_device_error(cuda):
    with pytest.raises(DeviceError, match="cuda:3 cannot be used: cuDeviceGet failed on cuda:3"):
        CudaDevice(3)
    assert cuda.retained == 0


def test_the_driver_is_asked_for_its_gpus(cuda):
    found = probe_driver()
    assert (found.gpus, found.cuda_version, compute_capability()) == (("NVIDIA H200",), "13.0", "9.0")
    with pytest.raises(DeviceError, match="error 101 for GPU 3"):
        compute_capability(3)
    cuda.set_gpus(0)
    assert "error 100" in probe_driver().problem
    cuda.stop()
    assert probe_driver().problem.startswith("no NVIDIA driver found")


def test_every_call_is_in_the_bindings_and_in_the_stand_in(cuda):
    """The stand-in runs each of them; here no name may be missing because no test came along."""
    driver = pytest.importorskip("cuda.bindings.driver")
    stub = (Path(__file__).parents[1] / "stand_ins" / "driver_stub.c").read_text()
    names = set()
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and re.fullmatch(r"cu[A-Z]\w+", str(node.value)):
                names.add(node.value)
        for kind, value in re.findall(r"driver\.(CU\w+)\.(CU_\w+)", file.read_text()):
            assert hasattr(getattr(driver, kind), value), f"{file.name}: {kind}.{value}"
    assert len(names) > 20
    assert not [name for name in names if not hasattr(driver, name)]
    assert not [name for name in names if f"Status {name}" not in stub and f"Status {name}With" not in stub]
