"""A machine with a GPU and TensorRT, both stand-ins."""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from psp_rt.build import build
from psp_rt.build.builder import BuildOptions
from psp_rt.hardware.probe import Driver
from tests.models import tiny_engine
from tests.stand_ins.cuda import FakeCuda
from tests.stand_ins.tensorrt import FakeTensorRT

DRIVER = Driver(gpus=("NVIDIA H200",), cuda_version="13.0")
TARGET = "nvidia-h200-sm90-tensorrt-10.13.3.9"


@dataclass
class FakeGpu:
    """What its driver and its TensorRT were told."""

    cuda: FakeCuda
    trt: FakeTensorRT

    def left(self) -> list[str]:
        """Return what was made and is not released yet; a context in use is "context"."""
        gc.collect()
        alive = [type(thing).__name__ for thing in self.trt.alive]
        assert self.cuda.faults == []
        return sorted([*self.cuda.live.values(), *["context"] * self.cuda.retained, *alive])


def install(monkeypatch: pytest.MonkeyPatch, version: str = "10.13.3.9", **settings: object) -> FakeGpu:
    """Make psp_rt believe that it runs on a machine with an H200."""
    cuda = FakeCuda()
    trt = FakeTensorRT(version, cuda=cuda, **settings)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr("psp_rt.build.build.probe_driver", lambda: DRIVER)
    monkeypatch.setattr("psp_rt.hardware.choose.probe_driver", lambda: DRIVER)
    monkeypatch.setattr("psp_rt.hardware.tensorrt.compute_capability", lambda index=0: "9.0")
    return FakeGpu(cuda, trt)


def engine_with_plans(
    path: Path, kind: str | None = "rgb", *, batches: tuple[int, int, int] = (1, 1, 4)
) -> Path:
    """Write a tiny engine with plans for the installed machine."""
    tiny_engine.build(path, kind)
    build.build(build.BuildRequest(engine=path, options=BuildOptions(batches=batches)))
    return path
