"""A machine with a GPU and TensorRT, both stand-ins."""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from psp_rt.build import BuildOptions, BuildRequest, build
from psp_rt.hardware.probe import Driver
from tests.models import tiny_engine
from tests.stand_ins import driver
from tests.stand_ins.driver import DriverStub
from tests.stand_ins.tensorrt import FakeTensorRT

gc.freeze()  # so that the collections of `FakeGpu.left` look at a test's own objects only

DRIVER = Driver(gpus=("NVIDIA H200",), cuda_version="13.0")  # what `probe_driver` finds on it
TARGET = "nvidia-h200-sm90-tensorrt-10.13.3.9"


@dataclass
class FakeGpu:
    """What its driver and its TensorRT were told."""

    cuda: DriverStub
    trt: FakeTensorRT

    def left(self) -> list[str]:
        """Return what was made and is not released yet; a context in use is "context"."""
        gc.collect()
        alive = [type(thing).__name__ for thing in self.trt.alive]
        assert self.cuda.faults == 0
        return sorted([*self.cuda.live, *["context"] * self.cuda.retained, *alive])


def install(monkeypatch: pytest.MonkeyPatch, version: str = "10.13.3.9", **settings: object) -> FakeGpu:
    """Make this process find an H200, its driver and TensorRT, until the monkeypatch is undone."""
    pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings: pip install cuda-bindings")
    pytest.importorskip("cuda.core", reason="needs cuda-core: pip install cuda-core")
    if problem := driver.obstacle():
        pytest.skip(problem)
    cuda = DriverStub()
    monkeypatch.setattr(driver.SWITCH, "on", True)
    trt = FakeTensorRT(version, cuda=cuda, **settings)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    return FakeGpu(cuda, trt)


def engine_with_plans(
    path: Path, kind: str | None = "rgb", *, batches: tuple[int, int, int] = (1, 1, 4)
) -> Path:
    """Write a tiny engine with plans for the installed machine."""
    tiny_engine.build(path, kind)
    build(BuildRequest(engine=path, options=BuildOptions(batches=batches)))
    return path
