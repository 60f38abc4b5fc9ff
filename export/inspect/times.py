"""How long each layer of an FP32 graph takes here, by ONNX Runtime's profiler, on the CPU.

ONNX Runtime runs another graph than the file holds: it folds constants, fuses nodes and puts in others that
change a map's order in memory. What it fused keeps the name of the layer where there is one; what it put in
is told apart. FP16 graphs are not timed: a CPU computes them in FP32 (`export.emulation`).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

WARMUP = 2
_END = "_kernel_time"


@dataclass(frozen=True, kw_only=True)
class LayerTimes:
    """Medians over the runs, in milliseconds.

    Args:
        by_layer: Of each layer that ONNX Runtime runs; a layer that is missing was folded or fused away.
        added: Of what ONNX Runtime put in, by operator.
        runs: How often the graph ran.
        runtime: What ran it, and on how many threads.
    """

    by_layer: Mapping[str, float]
    added: Mapping[str, float]
    runs: int
    runtime: str

    @property
    def total_ms(self) -> float:
        """Return the time of all, without what lies between them."""
        return sum(self.by_layer.values()) + sum(self.added.values())


def measure(
    path: Path, feeds: Mapping[str, NDArray[np.generic]], *, threads: int, runs: int = 10
) -> LayerTimes:
    """Run a graph several times and return the times of its layers.

    Args:
        path: The graph, every node named; its weights lie in the same folder.
        feeds: What it runs on.
        threads: 0 for one on each physical core.
        runs: How often, after `WARMUP` runs that do not count.
    """
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(path.with_suffix(""))
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for _ in range(WARMUP + runs):
        session.run(None, dict(feeds))
    events = json.loads(Path(session.end_profiling()).read_text())
    graph = onnx.load(path, load_external_data=False).graph
    by_layer, added = _sorted(_samples(events), graph)
    runtime = f"ONNX Runtime {onnxruntime.__version__}, {threads or 'all'} threads"
    return LayerTimes(by_layer=by_layer, added=added, runs=runs, runtime=runtime)


def _samples(events: list[dict[str, Any]]) -> dict[tuple[str, str], list[float]]:
    """Return the times of each node that ran, by its name and operator."""
    samples: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(_END):
            key = (event["name"].removesuffix(_END), event["args"]["op_name"])
            samples.setdefault(key, []).append(event["dur"] / 1000)
    return samples


def _sorted(
    samples: Mapping[tuple[str, str], list[float]], graph: onnx.GraphProto
) -> tuple[dict[str, float], dict[str, float]]:
    """Give each time to a layer of the file, or to an operator that is not in it."""
    by_layer: dict[str, float] = {}
    added: dict[str, float] = {}
    for (name, operator), times_ms in samples.items():
        layer = _layer(name, operator, graph)
        place, key = (added, operator) if layer is None else (by_layer, layer)
        place[key] = place.get(key, 0.0) + median(times_ms[WARMUP:])
    return by_layer, added


def _layer(name: str, operator: str, graph: onnx.GraphProto) -> str | None:
    """Return the layer that a node of ONNX Runtime's own graph computes, or None for what it put in.

    A node is named after a layer, or after the output that a convolution has with its activation in it.
    """
    plain = re.sub(r"^fused |_token_\d+$|/\w+Fusion$", "", name)
    if any(node.name == plain for node in graph.node):
        return plain
    makers = {output: node for node in graph.node for output in node.output}
    node = makers.get(plain.removesuffix("_nchwc"))
    while node is not None and node.op_type != operator:
        node = makers.get(node.input[0]) if node.input else None
    return None if node is None else str(node.name)
