"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from psp_rt import Translator
from tests.models import tiny_engine
from tests.stand_ins import gpu as fake_gpu
from tests.stand_ins.gpu import FakeGpu

if TYPE_CHECKING:
    from tests.stand_ins.library import Library


@pytest.fixture(scope="session")
def engine_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, Path]:
    """Tiny engines for each kind of input; None is generator-only."""
    folder = tmp_path_factory.mktemp("engines")
    return {
        kind: tiny_engine.build(folder / f"{kind}.engine", kind) for kind in ("rgb", "gray", "labels", None)
    }


@pytest.fixture(scope="session", params=["onnxruntime", "openvino"])
def backend(request: pytest.FixtureRequest) -> str:
    """What runs the graphs on the CPU: all promises hold on each."""
    name: str = request.param
    pytest.importorskip(name)
    return name


@pytest.fixture(scope="session")
def open_translator(
    engine_paths: dict[str | None, Path], backend: str
) -> Iterator[Callable[..., Translator]]:
    """Open a tiny engine once for each kind and settings."""
    opened: dict[tuple, Translator] = {}

    def open_once(kind: str | None = "rgb", **settings: object) -> Translator:
        key = (kind, *sorted(settings.items()))
        if key not in opened:
            opened[key] = Translator(engine_paths[kind], device="cpu", backend=backend, threads=1, **settings)
        return opened[key]

    yield open_once
    for translator in opened.values():
        translator.close()


@pytest.fixture(scope="session")
def translator(open_translator: Callable[..., Translator]) -> Translator:
    """A translator for RGB pictures, arrays in RGB order."""
    return open_translator("rgb", color="rgb")


@pytest.fixture
def picture() -> np.ndarray:
    """A picture of the size that the tiny RGB encoder takes."""
    return np.random.default_rng(0).integers(
        0, 256, (tiny_engine.HEIGHT, tiny_engine.WIDTH, 3), dtype=np.uint8
    )


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """A stand-in for a GPU, its driver and TensorRT."""
    return fake_gpu.install(monkeypatch)


@pytest.fixture
def library(gpu: FakeGpu) -> Iterator[Library]:
    """Another library on that GPU, such as PyTorch; in the end nothing may be left there."""
    from tests.stand_ins.library import Library

    opened = Library(gpu.cuda)
    yield opened
    gpu.cuda.refuse("", 0)
    opened.close()
    assert gpu.left() == []
