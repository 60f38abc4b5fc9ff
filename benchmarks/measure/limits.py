"""The limits of this machine: its arithmetic and memory, and how far contenders are from them.

The ceilings are the times of large products and of a large copy, measured among the contenders. On a CPU
the product is a convolution like the encoder's, by oneDNN. PyTorch's matrix product is MKL's, which reaches
less than half of that on an AMD processor: every contender exceeded it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import onnx
import torch

from benchmarks.measure.timing import Call, Timing, event_ms, wall_ms
from benchmarks.workloads.models import Architecture
from export.inspect.layers import count_macs, known_shapes
from psp_rt.engine import GRAPHS, EngineFile


@dataclass(frozen=True, kw_only=True)
class Work:
    """The least work that one run of a graph takes."""

    macs: int
    weight_bytes: int  # read once per run, however large the batch


def graph_work(engine: EngineFile, name: str, *, batch: int) -> Work:
    """Count the work of a graph: multiplications, and bytes of weights."""
    with engine.view(f"{name}.onnx") as data:
        model = onnx.load_model_from_string(bytes(data))
    constants = model.graph.initializer
    sizes = (prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
             for tensor in constants)  # fmt: skip
    return Work(macs=count_macs(model, batch=batch), weight_bytes=sum(sizes))


Device = Literal["cpu", "cuda"]
NAMES: dict[str, str] = {"cpu": "machine", "cuda": "GPU"}
COPY = "copy"
MAP_SIDE = 64  # pixels, of the product on a CPU: 512 channels to 512, as the encoder's fine heads begin
PRODUCTS = {
    "fp32": "large product",
    "bf16": "large product, BF16",
    "fp16": "large product, FP16",
}
PRECISIONS: dict[str, tuple[str, ...]] = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "fp16")}
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The highest rates of a device in one precision."""

    macs_per_s: float
    bytes_per_s: float


class Ceilings:
    """A product in each precision, a copy, and the rates that follow from their times.

    Args:
        side: Side of the matrices [side, side]; on a CPU four times the channels of the convolution.
        copied_bytes: Size of the copy; larger than every cache.
    """

    def __init__(self, *, threads: int, side: int, copied_bytes: int, device: Device = "cpu") -> None:
        torch.set_num_threads(threads)
        self._side, self._copied_bytes, self._device = side, copied_bytes, device
        self._products = {
            precision: Timing(contender=NAMES[device], stage=PRODUCTS[precision], batch=1, images=0)
            for precision in PRECISIONS[device]
        }
        self._copy = Timing(contender=NAMES[device], stage=COPY, batch=1, images=0)

    def calls(self) -> list[Call]:
        """Return the calls to time."""
        clock = wall_ms if self._device == "cpu" else event_ms
        products = [
            Call(timing=timing, run=self._multiply(TYPES[precision]), clock=clock)
            for precision, timing in self._products.items()
        ]
        return [*products, Call(timing=self._copy, run=self._copying(), clock=clock)]

    @property
    def _macs(self) -> int:
        """Multiplications of one product."""
        if self._device == "cpu":
            return (self._side // 4) ** 2 * 9 * MAP_SIDE**2
        return int(self._side**3)

    def _multiply(self, dtype: torch.dtype) -> Callable[[], object]:
        if self._device == "cpu":
            channels = self._side // 4
            layer = torch.nn.Conv2d(channels, channels, 3, padding=1, dtype=dtype)
            layer = layer.to(memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
            inputs = torch.rand(1, channels, MAP_SIDE, MAP_SIDE).to(dtype, memory_format=torch.channels_last)
            return lambda: layer(inputs)
        shape = (self._side, self._side)
        left, right, out = (torch.rand(shape, device=self._device).to(dtype) for _ in range(3))
        return lambda: torch.mm(left, right, out=out)

    def _copying(self) -> Callable[[], object]:
        source = torch.ones(self._copied_bytes // 4, device=self._device)
        target = torch.ones_like(source)
        return lambda: target.copy_(source)

    @property
    def measured(self) -> bool:
        """Return whether each of them has been timed."""
        products = [timing.samples_ms for timing in self._products.values()]
        return bool(all(products) and self._copy.samples_ms)

    def as_json(self) -> dict[str, float]:
        """Return the rates and what they were measured with."""
        products = {
            "gmacs_per_s" if precision == "fp32" else f"{precision}_gmacs_per_s": self.macs_per_s(precision)
            for precision in self._products
        }
        return {
            **{name: rate / 1e9 for name, rate in products.items()},
            "gbytes_per_s": self.bytes_per_s() / 1e9,
            "matrix_side": self._side,
            "copied_bytes": self._copied_bytes,
        }

    def __str__(self) -> str:
        """Return the rates in words."""
        products = [
            f"{self.macs_per_s(precision) / 1e9:.1f} GMAC/s ({precision.upper()} product)"
            for precision in self._products
        ]
        return f"{', '.join(products)}, {self.bytes_per_s() / 1e9:.1f} GB/s (copy)"

    def peak(self, precision: str) -> Peak:
        """Return the rates of a precision."""
        return Peak(macs_per_s=self.macs_per_s(precision), bytes_per_s=self.bytes_per_s())

    def macs_per_s(self, precision: str = "fp32") -> float:
        """Return the median rate of the product."""
        return self._macs / (self._products[precision].p50_ms / 1000)

    def bytes_per_s(self) -> float:
        """Return the median rate of the copy; each byte is read and written."""
        return 2 * self._copied_bytes / (self._copy.p50_ms / 1000)


STAGE_GRAPHS = {"encode": ("encoder",), "generate": ("generator",), "end to end": ("encoder", "generator")}


@dataclass(frozen=True, kw_only=True)
class Distance:
    """A contender's median time compared with the bound."""

    contender: str
    stage: str
    batch: int
    gmacs: float
    bound_ms: float  # the larger one of arithmetic and reading the weights
    p50_ms: float
    ratio: float


def distances(
    timings: Sequence[Timing],
    works: Mapping[tuple[str, int], Work],
    peaks: Mapping[str, Peak],
) -> list[Distance]:
    """Compare every timed stage with its bound.

    Args:
        works: Work of each graph and batch size.
        peaks: Peak of each contender's device, in its precision.
    """
    found = []
    for timing in timings:
        peak = peaks.get(timing.contender)
        if peak is not None and timing.stage in STAGE_GRAPHS and timing.samples_ms:
            parts = [works[graph, timing.batch] for graph in STAGE_GRAPHS[timing.stage]]
            macs = sum(part.macs for part in parts)
            arithmetic_s = macs / peak.macs_per_s
            reading_s = sum(part.weight_bytes for part in parts) / peak.bytes_per_s
            bound_ms = 1000 * max(arithmetic_s, reading_s)
            found.append(
                Distance(
                    contender=timing.contender,
                    stage=timing.stage,
                    batch=timing.batch,
                    gmacs=macs / 1e9,
                    bound_ms=bound_ms,
                    p50_ms=timing.p50_ms,
                    ratio=timing.p50_ms / bound_ms,
                )
            )
    return found


MAPS_AT_ONCE = 8  # of the largest size, in eager PyTorch: input, output, filtered, modulated, and spare
# PyTorch's, ONNX Runtime's mapped and packed ones, OpenVINO's three (FP32, BF16, all in BF16), and one
# while an engine is made
WEIGHT_COPIES = 7


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """The memory of a model in FP32: its weights, and the largest map for one picture."""

    weight_bytes: int
    map_bytes: int

    @classmethod
    def of_architecture(cls, architecture: Architecture) -> Footprint:
        """Compute it without allocating the memory."""
        return cls(weight_bytes=architecture.parameter_bytes(), map_bytes=architecture.activation_bytes())

    @classmethod
    def of_engine(cls, path: Path) -> Footprint:
        """Compute it from the shapes in an engine's graphs."""
        with EngineFile.open(path) as engine:
            graphs = {
                name: onnx.load_model_from_string(bytes(engine.view(f"{name}.onnx"))) for name in GRAPHS
            }
        weights = (tensor for graph in graphs.values() for tensor in graph.graph.initializer)
        shapes = known_shapes(graphs["generator"], batch=1).values()
        return cls(
            weight_bytes=4 * sum(prod(tensor.dims) for tensor in weights),
            map_bytes=4 * max((prod(shape) for shape in shapes if len(shape) == 4), default=0),
        )

    def needed_bytes(self, *, batch: int, opened: bool = False) -> int:
        """Return the memory that measuring takes, in addition to that of contenders already open."""
        weights = 0 if opened else WEIGHT_COPIES * self.weight_bytes
        return weights + MAPS_AT_ONCE * batch * self.map_bytes

    def shortage(self, *, batch: int, opened: bool = False) -> str:
        """Return why the model does not fit into memory, or "" if it does; estimated on the high side."""
        needed, available = self.needed_bytes(batch=batch, opened=opened), available_bytes()
        if available is None or needed <= available:
            return ""
        return f"needs about {needed / 2**30:.1f} GiB of memory, {available / 2**30:.1f} GiB are free"


def available_bytes() -> int | None:
    """Return the available memory, or None if it is unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    group = _group_bytes()
    return group if free is None else free if group is None else min(free, group)


def _group_bytes() -> int | None:
    """Return what a container's own limit leaves. File pages do not count, because they can be dropped."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return None if limit == "max" else int(limit) - int(used["anon"])
    except (OSError, KeyError, ValueError):
        return None
