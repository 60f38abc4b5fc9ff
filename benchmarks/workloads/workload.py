"""The workload of a benchmark: an engine, the same model in PyTorch, and pictures to translate."""

import gc
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image

from benchmarks import ROOT
from benchmarks.workloads.inputs import read
from benchmarks.workloads.models import Architecture, draw
from export.checkpoints.load import load
from export.checkpoints.tensors import Model
from export.engine import Settings, export_engine
from export.parity import draw_images
from psp_rt import EngineFile, InputError, InputSpec, Manifest, Translator
from psp_rt.build import BuildOptions, BuildRequest, build
from psp_rt.hardware import Hardware, find_plan, probe_driver
from psp_rt.images import Pixels

Setting = tuple[str, str, str]  # device, backend, precision
SEEDS = (1, 2, 3, 4)  # of the styles that are mixed in
CACHE = ROOT / "benchmarks" / ".cache"
SOURCES = (
    "export",
    "trainer/networks",
    "psp_rt/engine/manifest.py",
    "benchmarks/workloads/models.py",
)  # an engine is made again if one of these changes


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One model and its inputs."""

    name: str
    engine: Path
    manifest: Manifest
    model: Model | None  # the same in PyTorch; None if only an engine was given
    pictures: tuple[Path, ...]  # as many as the largest batch
    threads: int
    architecture: Architecture | None = None  # of drawn weights; None for a user's engine
    checkpoint: Path | None = None  # of a user's engine, if given
    translators: dict[Setting, Translator] = field(default_factory=dict)  # the open ones
    engines: dict[Setting, Path] = field(default_factory=dict)  # the files that they were opened from

    @property
    def input(self) -> InputSpec:
        assert self.manifest.input is not None
        return self.manifest.input

    @property
    def translator(self) -> Translator:
        """The engine on ONNX Runtime."""
        return self.opened("onnxruntime", "fp32")

    def opened(
        self, backend: str, precision: str, *, device: str = "cpu", engine: Path | None = None
    ) -> Translator:
        """Return the engine, opened. Contenders clone it, so that they run the same graphs.

        Args:
            engine: The same engine with TensorRT plans, if that is another file.

        Raises:
            DeviceError: The device, the backend or the precision is not available here.
        """
        key = (device, backend, precision)
        self.engines[key] = engine or self.engine
        if key not in self.translators:
            self.translators[key] = Translator(
                self.engines[key],
                device=cast(Any, device),
                backend=cast(Any, backend),
                precision=cast(Any, precision),
                color="rgb",
                threads=self.threads,
                max_batch=max(4, len(self.pictures)),  # one batch is never run in parts
            )
        return self.translators[key]

    def engine_of(self, translator: Mapping[str, str]) -> Path:
        """Return the engine that a translator of these settings was opened from."""
        key = (translator["device"], translator["backend"], translator["precision"])
        return self.engines.get(key, self.engine)

    @property
    def first_mixed_row(self) -> int:
        """Return where styles are mixed in: the paper's layers 8 to 18, or all rows of a small model."""
        return 7 if self.manifest.num_styles > 7 else 0

    def with_plans(self, precision: str) -> Path:
        """Return a user's engine unchanged, or a drawn engine with TensorRT plans, built if missing.

        There is one copy of a drawn engine for each precision, because building adds to a file. The benchmark
        compares the results of the plans later.

        Raises:
            DeviceError: There is no GPU to build on.
            BackendError: TensorRT is missing or fails.
        """
        if self.architecture is None or probe_driver().problem:
            return self.engine  # opening it reports what is missing
        engine = cached_engine(
            self.architecture,
            lambda step: None,
            variant=f"-tensorrt-{precision}",
            settings=Settings(precision=cast(Literal["fp32", "fp16"], precision), pictures=self.pictures),
        )
        with EngineFile.open(engine) as file:
            fits = find_plan(file, Hardware(), 0, precision).target
        if not fits:
            batch = max(4, len(self.pictures))
            build(BuildRequest(engine=engine, options=BuildOptions(batches=(1, batch, batch))))
        return engine

    def close(self) -> None:
        """Close the translators."""
        for translator in self.translators.values():
            translator.close()
        self.translators.clear()

    def images(self, batch: int) -> Pixels:
        """Return pictures as inputs of the encoder, [N, H, W, C]."""
        return read(self.pictures[:batch], self.input)


def drawn_workload(
    architecture: Architecture, *, batch: int, threads: int, report: Callable[[str], None]
) -> Workload:
    """Return a model with drawn weights. Its engine is made once and then cached."""
    engine = cached_engine(architecture, report)
    found = _workload(architecture.name, engine, draw(architecture), batch=batch, threads=threads)
    return replace(found, architecture=architecture)


def given_workload(engine: Path, checkpoint: Path | None, *, batch: int, threads: int) -> Workload:
    """Return a user's engine, with the checkpoint that it was made from if that is given."""
    model = load(checkpoint) if checkpoint else None
    return replace(_workload(engine.stem, engine, model, batch=batch, threads=threads), checkpoint=checkpoint)


def _workload(name: str, engine: Path, model: Model | None, *, batch: int, threads: int) -> Workload:
    with EngineFile.open(engine) as file:
        manifest = file.manifest
    if manifest.input is None:
        raise InputError(f"{engine} has no encoder; expected an engine that translates pictures")
    if manifest.noise == "random":
        raise InputError(
            f"{engine} draws new noise at every run, so its pictures cannot be compared; "
            "export it with --noise const"
        )
    return Workload(
        name=name,
        engine=engine,
        manifest=manifest,
        model=model,
        pictures=draw_pictures(manifest.input, batch, CACHE / "pictures"),
        threads=threads,
    )


def draw_pictures(spec: InputSpec, count: int, folder: Path) -> tuple[Path, ...]:
    """Write pictures of twice the input's size, so that contenders must decode and resize them."""
    folder.mkdir(parents=True, exist_ok=True)
    smooth, rough = draw_images(replace(spec, height=2 * spec.height, width=2 * spec.width))
    paths = []
    for index in range(count):
        pixels = np.roll(smooth, 7 * index, axis=1)
        pixels[: spec.height // 4] = rough[: spec.height // 4]
        path = folder / f"{spec.kind}{spec.labels or ''}-{spec.width}x{spec.height}-{index}.png"
        Image.fromarray(pixels if spec.channels == 3 else pixels[..., 0]).save(path)
        paths.append(path)
    return tuple(paths)


def cached_engine(
    architecture: Architecture,
    report: Callable[[str], None],
    *,
    variant: str = "",
    settings: Settings | None = None,
) -> Path:
    """Return the engine of an architecture. It is made again if the code that makes it has changed.

    Args:
        variant: Distinguishes engines of other settings.
        settings: For the export.
    """
    CACHE.mkdir(exist_ok=True)
    stem = f"{architecture.name}{variant}"
    path = CACHE / f"{stem}-{_key(architecture)}.engine"
    if not path.exists():
        for outdated in CACHE.glob(f"{stem}-????????????.engine"):
            outdated.unlink()  # a full-size engine has more than a gigabyte
        export_engine(draw(architecture), path, settings, report=report)
        gc.collect()
    return path


def _key(architecture: Architecture) -> str:
    digest = hashlib.sha256(f"{architecture} torch {torch.__version__}".encode())
    for source in SOURCES:
        place = ROOT / source
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
