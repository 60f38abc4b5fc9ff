"""Time each layer of an FP32 graph on the CPU with ONNX Runtime's profiler.

ONNX Runtime does not run the graph as it is stored: it folds constants, fuses nodes and adds nodes that
change the memory layout of a map. A fused node keeps the name of a layer if there is one; added nodes are
reported separately. FP16 graphs are not timed, because a CPU computes them in FP32 (`graphs.activations`).
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
        by_layer: Times of the layers; missing layers were folded or fused.
        added: Times of nodes that ONNX Runtime added, by operator.
        runs: Number of timed runs.
        runtime: Name, version and threads of the runtime.
    """

    by_layer: Mapping[str, float]
    added: Mapping[str, float]
    runs: int
    runtime: str

    @property
    def total_ms(self) -> float:
        """Return the sum of all times, without the gaps between them."""
        return sum(self.by_layer.values()) + sum(self.added.values())


def measure(
    path: Path, feeds: Mapping[str, NDArray[np.generic]], *, threads: int, runs: int = 10
) -> LayerTimes:
    """Run a graph several times and return the times of its layers.

    Args:
        path: The graph, with a name for every node; its weights are in the same folder.
        feeds: Its inputs.
        threads: 0 for one per physical core.
        runs: Timed runs, after `WARMUP` others.
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
    """Assign each time to a layer of the file, or to an added operator."""
    by_layer: dict[str, float] = {}
    added: dict[str, float] = {}
    for (name, operator), times_ms in samples.items():
        layer = _layer(name, operator, graph)
        place, key = (added, operator) if layer is None else (by_layer, layer)
        place[key] = place.get(key, 0.0) + median(times_ms[WARMUP:])
    return by_layer, added


def _layer(name: str, operator: str, graph: onnx.GraphProto) -> str | None:
    """Return the layer that a node of ONNX Runtime's graph computes; None if ONNX Runtime added it.

    A node is named after a layer, or after the output of a convolution with a fused activation.
    """
    plain = re.sub(r"^fused |_token_\d+$|/\w+Fusion$", "", name)
    if any(node.name == plain for node in graph.node):
        return plain
    makers = {output: node for node in graph.node for output in node.output}
    node = makers.get(plain.removesuffix("_nchwc"))
    while node is not None and node.op_type != operator:
        node = makers.get(node.input[0]) if node.input else None
    return None if node is None else str(node.name)
