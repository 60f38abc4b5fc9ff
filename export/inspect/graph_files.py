"""The graphs of an engine as files that tools can open, checked as the runtime checks them.

Every node has a name in them, so that a profiler's figures can be told apart.
"""

import os
from pathlib import Path

import onnx

from psp_rt import EngineFile
from psp_rt.engine.graph import WeightsPointer

FP16_END = ".fp16"


def graph_names(engine: EngineFile) -> list[str]:
    """Return the graphs of an engine in the order of their work: encoder, encoder.fp16, mapping, ..."""
    present = {name.removesuffix(".onnx") for name in engine.names if name.endswith(".onnx")}
    order = [f"{name}{end}" for name in ("encoder", "mapping", "generator") for end in ("", FP16_END)]
    return [name for name in order if name in present]


def weights_name(graph: str) -> str:
    """Return the member that holds a graph's weights, which both precisions share."""
    return f"{graph.removesuffix(FP16_END)}.weights"


def load(engine: EngineFile, graph: str) -> onnx.ModelProto:
    """Return a graph without its weights.

    Raises:
        FormatError: It reaches outside its own weights, or is made of what no engine needs.
    """
    weights = weights_name(graph)
    pointer = WeightsPointer(
        f"{engine.path}: {graph}.onnx",
        file_name=Path(os.path.realpath(engine.path)).name,
        weights_name=weights,
        weights=engine.span(weights) if weights in engine.names else None,
    )
    with engine.view(f"{graph}.onnx") as data:
        pointer.rewrite(data)  # refuses what is harmful
        model = onnx.load_model_from_string(bytes(data))
    for node in model.graph.node:
        node.name = node.name or node.output[0]
    return model


def unpack(engine: EngineFile, graph: str, folder: Path) -> Path:
    """Write a graph and its weights into a folder and return the graph's path."""
    weights = weights_name(graph)
    if weights in engine.names and not (folder / weights).exists():
        with engine.view(weights) as data:
            (folder / weights).write_bytes(data)
    path = folder / f"{graph}.onnx"
    path.write_bytes(load(engine, graph).SerializeToString())
    return path
