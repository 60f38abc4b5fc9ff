"""Does a model fit into this machine's memory? An estimate, on the high side."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx

from benchmarks.measure.models import Architecture
from export.inspect.shapes import known_shapes
from psp_rt import EngineFile
from psp_rt.engine.ports import GRAPHS

MAPS_AT_ONCE = 8  # of the largest size, in eager PyTorch: input, output, filtered, modulated, and spare
# PyTorch's, ONNX Runtime's mapped and packed ones, OpenVINO's three (FP32, BF16, all in BF16), and one
# while an engine is made
WEIGHT_COPIES = 7


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a model takes in FP32: its weights, and the largest map for one picture."""

    weight_bytes: int
    map_bytes: int

    @classmethod
    def of_architecture(cls, architecture: Architecture) -> Footprint:
        """Return it without taking the memory."""
        return cls(weight_bytes=architecture.parameter_bytes(), map_bytes=architecture.activation_bytes())

    @classmethod
    def of_engine(cls, path: Path) -> Footprint:
        """Return it from the shapes in an engine's graphs."""
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
        """Return the memory that measuring takes, beside that of contenders which are open already."""
        weights = 0 if opened else WEIGHT_COPIES * self.weight_bytes
        return weights + MAPS_AT_ONCE * batch * self.map_bytes

    def shortage(self, *, batch: int, opened: bool = False) -> str:
        """Return why something is skipped, or nothing if it fits."""
        needed, available = self.needed_bytes(batch=batch, opened=opened), available_bytes()
        if available is None or needed <= available:
            return ""
        return f"needs about {needed / 2**30:.1f} GiB of memory, {available / 2**30:.1f} GiB are free"


def available_bytes() -> int | None:
    """Return the memory that is free for us, or None where that is unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    group = _group_bytes()
    return group if free is None else free if group is None else min(free, group)


def _group_bytes() -> int | None:
    """Return what a container's own limit leaves; file pages in its use can be dropped."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return None if limit == "max" else int(limit) - int(used["anon"])
    except (OSError, KeyError, ValueError):
        return None
