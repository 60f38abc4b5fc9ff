"""Count the kernels of an engine's graphs on a GPU, and the memory that they move, without a GPU.

TensorRT for RTX builds for a stated compute capability on any machine. Its messages describe each kernel of
the finished plan: the tensors that it reads and writes, with sizes and types, and the ONNX layers that were
fused into it. TensorRT 10 and 11 have the same compiler but choose among more kernels, so the counts are a
close guess for them, and the times are a model:

    us = max(bytes / (85 % of the card's bandwidth),
             2 * MACs / (60 % of its peak * the share of processors that are busy)) + 1.5

A kernel computes its output in blocks of 64 rows (pixels of all pictures) and 32 columns (channels), and each
processor computes one block at a time. The 1.5 us are the start of a kernel inside a CUDA graph. The model is
too kind to small convolutions and to filters of one channel.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import ceil, prod
from typing import Any

from export.inspect.layers import read_layers
from export.inspect.report import FP16_END, Report, named_graph, table
from psp_rt import BackendError, EngineFile, FormatError, InputError
from psp_rt.build import BuildOptions, PlanBuilder
from psp_rt.engine import GRAPHS

INSTALL = "pip install --no-deps tensorrt_rtx_cu13_libs tensorrt_rtx_cu13_bindings"
CAPABILITY = "SM89"
COSTLIEST = 15

REACHED_BANDWIDTH, REACHED_PEAK = 0.85, 0.6
START_US = 1.5
BLOCK = (64, 32)  # rows and columns

EVENTS = ("signal", "wait")  # between streams: no kernels
BYTES = {"Float": 4, "Half": 2, "BFloat16": 2, "Int64": 8, "Int32": 4, "Int8": 1, "UInt8": 1, "Bool": 1}


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the estimate needs of a GPU; the defaults are assumed for an H100.

    Args:
        bandwidth_tb_s: Of its memory.
        peak_tflops: Of its tensor cores in FP16.
        processors: Streaming multiprocessors.
    """

    bandwidth_tb_s: float = 3.0
    peak_tflops: float = 790.0
    processors: int = 132


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor that a kernel reads or writes."""

    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def bytes(self) -> int:
        return prod(self.shape) * BYTES.get(self.kind, 4)


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kernel of a plan.

    Args:
        name: TensorRT's: it tells the fused operations.
        kind: TensorRT's layer type: "correlation", "kgen".
        tensors: Inputs, constants and outputs, each once.
        constant_bytes: Of these, the constants.
        outputs: What it writes.
        layers: The ONNX layers that are fused into it.
        macs: Multiplications.
    """

    name: str
    kind: str
    tensors: tuple[Tensor, ...]
    constant_bytes: int
    outputs: tuple[Tensor, ...]
    layers: tuple[str, ...]
    macs: int = 0

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)

    def us(self, card: Card) -> float:
        """Return the estimated time on a card."""
        moving = self.bytes / (card.bandwidth_tb_s * 1e6 * REACHED_BANDWIDTH)
        blocks = max((_blocks(tensor.shape) for tensor in self.outputs), default=1)
        busy = blocks / (ceil(blocks / card.processors) * card.processors)
        computing = 2 * self.macs / (card.peak_tflops * 1e6 * REACHED_PEAK * busy)
        return max(moving, computing) + START_US


def _blocks(shape: tuple[int, ...]) -> int:
    """Return the blocks of a map [N, C, H, W] or of a product [..., rows, columns]."""
    columns = shape[1] if len(shape) == 4 else shape[-1] if shape else 1
    return ceil(prod(shape) / columns / BLOCK[0]) * ceil(columns / BLOCK[1])


@dataclass(frozen=True, kw_only=True)
class GraphKernels:
    """The kernels of one graph."""

    graph: str
    batch: int
    kernels: list[Kernel] = field(repr=False)

    @property
    def megabytes(self) -> float:
        return sum(kernel.bytes for kernel in self.kernels) / 1e6

    @property
    def gmacs(self) -> float:
        return sum(kernel.macs for kernel in self.kernels) / 1e9

    def us(self, card: Card) -> float:
        return sum(kernel.us(card) for kernel in self.kernels)

    def costliest(self, card: Card) -> list[Kernel]:
        return sorted(self.kernels, key=lambda kernel: -kernel.us(card))[:COSTLIEST]


def kernels_json(graphs: Sequence[GraphKernels], card: Card) -> dict[str, Any]:
    """Return all of it in JSON's types, with the costliest kernels of each graph."""
    return {
        "built_by": f"TensorRT for RTX {load_rtx().__version__}, {CAPABILITY}",
        "card": asdict(card),
        "graphs": {graph.graph: _graph_json(graph, card) for graph in graphs},
        "kernels": sum(len(graph.kernels) for graph in graphs),
        "megabytes": round(sum(graph.megabytes for graph in graphs), 1),
        "estimate_us": round(sum(graph.us(card) for graph in graphs), 1),
    }


def _graph_json(graph: GraphKernels, card: Card) -> dict[str, Any]:
    return {
        "batch": graph.batch,
        "kernels": len(graph.kernels),
        "kernels_below_4_us": sum(kernel.us(card) < 4 for kernel in graph.kernels),
        "megabytes": round(graph.megabytes, 1),
        "gmacs": round(graph.gmacs, 3),
        "estimate_us": round(graph.us(card), 1),
        "costliest": [
            {
                "name": kernel.name,
                "estimate_us": round(kernel.us(card), 2),
                "megabytes": round(kernel.bytes / 1e6, 3),
                "gmacs": round(kernel.macs / 1e9, 4),
                "layers": list(kernel.layers),
            }
            for kernel in graph.costliest(card)
        ],
    }


def kernel_lines(graphs: Sequence[GraphKernels], card: Card) -> Iterator[str]:
    """Yield the lines that `python -m export inspect --kernels` prints."""
    for graph in graphs:
        yield ""
        yield (
            f"{graph.graph}.onnx, batch {graph.batch}: {len(graph.kernels)} kernels, "
            f"{graph.megabytes:,.1f} MB moved, {graph.gmacs:.2f} GMAC, {graph.us(card):,.0f} us by the model"
        )
        rows = [["kernel", "us", "MB", "GMAC", "layers"]]
        for kernel in graph.costliest(card):
            figures = [f"{kernel.us(card):.1f}", f"{kernel.bytes / 1e6:.2f}", f"{kernel.macs / 1e9:.3f}"]
            shown = ", ".join(kernel.layers[:2]) + (", ..." if len(kernel.layers) > 2 else "")
            rows.append([kernel.name.removeprefix("__myl_")[:40], *figures, shown])
        yield from table(iter(rows))
    together = sum(graph.us(card) for graph in graphs)
    count = sum(len(graph.kernels) for graph in graphs)
    megabytes = sum(graph.megabytes for graph in graphs)
    yield ""
    yield (
        f"together: {count} kernels, {megabytes:,.1f} MB; the model, not a measurement, says "
        f"{together:,.0f} us "
        f"on a card with {card.bandwidth_tb_s:g} TB/s and {card.peak_tflops:g} TFLOP/s"
    )


def load_rtx() -> Any:
    """Import TensorRT for RTX.

    Raises:
        BackendError: It is not installed, or cannot be loaded.
    """
    try:
        return importlib.import_module("tensorrt_rtx_bindings")
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(
            f"kernels are counted with TensorRT for RTX, which cannot be loaded ({error}); install it with: "
            f"{INSTALL}"
        ) from error


class RtxBuilder(PlanBuilder):
    """Builds plans for a stated compute capability instead of a GPU that is here."""

    def __init__(
        self,
        trt: Any,
        options: BuildOptions | None = None,
        *,
        listen: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(trt, options or BuildOptions(), listen=listen)
        self._rtx = trt

    def config(self, network: Any) -> Any:
        """Return the configuration for a network."""
        config = super().config(network)
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(self._rtx.ComputeCapability, CAPABILITY), 0)
        return config


def count_kernels(
    engine: EngineFile, *, batch: int, report: Report = lambda step: None
) -> list[GraphKernels]:
    """Build the FP16 graphs of an engine for one batch size and return their kernels.

    Raises:
        BackendError: TensorRT for RTX is missing, or cannot build a graph.
        FormatError: A graph is not safe to load.
        InputError: The engine has no FP16 graphs.
    """
    names = [f"{graph}{FP16_END}" for graph in GRAPHS if f"{graph}{FP16_END}.onnx" in engine.names]
    if not names:
        raise InputError(
            f"{engine.path} has no FP16 graphs, which --kernels counts; export it with --precision fp16"
        )
    trt, found = load_rtx(), []
    for name in names:
        report(f"building the {name} for a batch of {batch}")
        messages: list[str] = []
        builder = RtxBuilder(trt, BuildOptions(batches=(batch, batch, batch)), listen=messages.append)
        builder.build(builder.parse(engine, name))
        try:
            macs = {layer.name: layer.macs for layer in read_layers(named_graph(engine, name), batch=batch)}
        except ValueError as error:
            raise FormatError(f"{engine.path}: {name}.onnx cannot be counted: {error}") from error
        found.append(GraphKernels(graph=name, batch=batch, kernels=read_kernels(messages, macs)))
    return found


_KERNEL = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>.*?), Inputs: \[(?P<inputs>.*?)\], Constants: "
    r"\[(?P<constants>.*?)\], Outputs: \[(?P<outputs>.*?)\], TacticName: .*?, StreamId: \d+, "
    r"(?:EventId: \d+, )?Metadata: (?P<layers>.*)$"
)
_TENSOR = re.compile(r"\{ Name: (.*?), Dimensions: \[([\d,]*)\], .*?Datatype: (\w+), ")
_LAYER = re.compile(r"\[ONNX Layer: (?!node_of_)(.*?)\](?=[\x1f\[]|$)")


def read_kernels(messages: Sequence[str], macs: Mapping[str, int]) -> list[Kernel]:
    """Return the kernels that the messages of a build describe.

    Args:
        messages: All messages, also the verbose ones.
        macs: Multiplications by ONNX layer. They are counted for the kernel that reads the most constants
            of those that name the layer.
    """
    kernels = []
    for line in (line for message in messages for line in message.splitlines()):
        if not (line.startswith("Name: ") and ", LayerType: " in line):
            continue
        match = _KERNEL.match(line)
        if match and match["kind"] in EVENTS:
            continue
        if match is None:
            raise BackendError(f"TensorRT for RTX describes a kernel in an unknown form: {line[:200]}")
        inputs, constants, outputs = (_tensors(match[part]) for part in ("inputs", "constants", "outputs"))
        distinct = {tensor.name: tensor for tensor in (*inputs, *constants, *outputs)}
        kernel = Kernel(
            name=match["name"],
            kind=match["kind"],
            tensors=tuple(distinct.values()),
            constant_bytes=sum(tensor.bytes for tensor in constants),
            outputs=outputs,
            layers=tuple(dict.fromkeys(_LAYER.findall(match["layers"]))),
        )
        kernels.append(kernel)
    if not kernels:
        raise BackendError(f"TensorRT for RTX describes no kernels; use another version of it: {INSTALL}")

    # Each layer's multiplications are counted once.
    own: dict[int, int] = {}
    for layer, count in macs.items():
        naming = [at for at, kernel in enumerate(kernels) if layer in kernel.layers]
        if naming:
            at = max(naming, key=lambda at: (kernels[at].constant_bytes, kernels[at].bytes))
            own[at] = own.get(at, 0) + count
    return [replace(kernel, macs=own.get(at, 0)) for at, kernel in enumerate(kernels)]


def _tensors(text: str) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(name=name, shape=tuple(int(size) for size in sizes.split(",") if size), kind=kind)
        for name, sizes, kind in _TENSOR.findall(text)
    )
