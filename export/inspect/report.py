"""Inspect an engine: the layers of its graphs, their times here, and the difference of FP16 from FP32."""

import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from export.graphs.activations import Feeds
from export.graphs.fp16 import load_pictures, styled_inputs
from export.inspect import times as layer_times
from export.inspect.layers import Layer, by_operator, read_layers
from export.inspect.times import LayerTimes
from psp_rt import EngineFile, FormatError, InputError, Translator
from psp_rt.cli.group import require
from psp_rt.engine import GRAPHS, graph_ports

if TYPE_CHECKING:
    from export.inspect.differences import Difference

Report = Callable[[str], None]
FP16_END = ".fp16"
MOST_DIFFERENT = 10


@dataclass(frozen=True, kw_only=True)
class GraphView:
    """A graph of an engine.

    Args:
        name: For example "generator.fp16".
        layers: In order.
        for_range: Layers that stay in FP32 because their numbers exceed FP16's range.
        times: Of its layers; None if it was not timed.
    """

    name: str
    layers: list[Layer]
    for_range: tuple[str, ...]
    times: LayerTimes | None

    @property
    def parameters(self) -> int:
        """Return the number of stored numbers that it reads."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        """Return the multiplications for one picture."""
        return sum(layer.macs for layer in self.layers)

    @property
    def islands(self) -> list[Layer]:
        """Return the layers of an FP16 graph that compute in FP32."""
        return [layer for layer in self.layers if layer.island]


@dataclass(kw_only=True)
class Inspection:
    """The result of an inspection."""

    engine: str
    graphs: list[GraphView] = field(default_factory=list)
    differences: "dict[str, list[Difference]]" = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return everything in JSON's types. NaN and infinity are null."""
        found = {
            "engine": self.engine,
            "graphs": {view.name: asdict(view) for view in self.graphs},
            "differences": {name: [asdict(one) for one in all_] for name, all_ in self.differences.items()},
        }
        plain: dict[str, Any] = _without_infinities(found)
        return plain


def view_graphs(engine: EngineFile, *, time_runs: int, threads: int, report: Report) -> list[GraphView]:
    """Return the graphs of an engine: encoder, encoder.fp16, mapping, and so on.

    Args:
        engine: The engine.
        time_runs: How often each FP32 graph runs to time its layers; 0 to skip the timing.
        threads: On the CPU; 0 for one per physical core.
        report: Called at the start of each step.

    Raises:
        FormatError: A graph is not safe to load, or its shapes cannot be inferred.
    """
    views = []
    with tempfile.TemporaryDirectory() as folder:
        for name in (f"{graph}{end}" for graph in GRAPHS for end in ("", FP16_END)):
            if f"{name}.onnx" not in engine.names:
                continue
            graph, half = name.removesuffix(FP16_END), name.endswith(FP16_END)
            try:
                layers = read_layers(named_graph(engine, name), batch=1)
            except ValueError as error:
                raise FormatError(f"{engine.path}: {name}.onnx cannot be counted: {error}") from error
            times = None
            if time_runs and not half:
                report(f"timing the {name}")
                # The time of a graph does not depend on the values of its inputs.
                inputs, _ = graph_ports(engine.manifest, name)
                zeros = {port.name: np.zeros((1, *port.shape), port.dtype) for port in inputs}
                path = unpack(engine, name, Path(folder))
                times = layer_times.measure(path, zeros, threads=threads, runs=time_runs)
            for_range = tuple(engine.manifest.fp32_layers.get(graph, ())) if half else ()
            views.append(GraphView(name=name, layers=layers, for_range=for_range, times=times))
    return views


def compare_precisions(
    engine: EngineFile, pictures: Sequence[Path], *, save_to: Path | None, report: Report
) -> "dict[str, list[Difference]]":
    """Return the difference of each layer of the FP16 graphs from FP32, by network.

    Args:
        engine: The engine.
        pictures: Files or folders; not used for a generator alone, which gets a random style.
        save_to: A folder for Polygraphy's files.
        report: Called at the start of each step.

    Raises:
        InputError: The engine has no FP16 graphs, or there are no pictures to compare on.
    """
    with require("--compare", install="pip install '.[cpu,export]'"):
        from export.inspect import differences as layer_differences
    manifest = engine.manifest
    if manifest.precision != "fp16":
        raise InputError(
            f"{engine.path} contains no FP16 graphs; export it with --precision fp16, or leave out --compare"
        )
    if manifest.input is not None and not pictures:
        raise InputError("--compare needs a picture that the model is for; add --pictures FILE_OR_FOLDER")

    # Run FP32 to get the generator's inputs: the codes of the pictures, or a random style.
    images = load_pictures(pictures, manifest.input)
    inputs: dict[str, list[Feeds]] = {}
    with Translator(engine.path, device="cpu", backend="onnxruntime", color="rgb", max_batch=1) as translator:
        if images is None:
            codes = translator.sample(0)[None]
        else:
            inputs["encoder"] = [{"image": image[None]} for image in images]
            codes = translator.encode(list(images if images.shape[3] == 3 else images[..., 0]))
    if manifest.noise == "random":
        report("leaving out the generator: it draws new noise in every run")
    else:
        inputs["generator"] = list(styled_inputs(codes))

    differences = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, feeds in inputs.items():
            report(f"comparing the {name} in FP16 with FP32")
            for graph in (name, f"{name}{FP16_END}"):
                unpack(engine, graph, Path(folder))
            differences[name] = layer_differences.compare(Path(folder), name, feeds, save_to=save_to)
    return differences


def named_graph(engine: EngineFile, name: str) -> onnx.ModelProto:
    """Return a graph without its weights. Every node has a name, so that a profiler's times can be assigned.

    Raises:
        FormatError: The graph is not safe to load.
    """
    engine.graph(name)  # raises the error
    with engine.view(f"{name}.onnx") as data:
        model = onnx.load_model_from_string(bytes(data))
    for node in model.graph.node:
        node.name = node.name or node.output[0]
    return model


def unpack(engine: EngineFile, name: str, folder: Path) -> Path:
    """Write a graph and its weights, which both precisions share, and return the graph's path."""
    weights = f"{name.removesuffix(FP16_END)}.weights"
    if weights in engine.names and not (folder / weights).exists():
        with engine.view(weights) as data:
            (folder / weights).write_bytes(data)
    path = folder / f"{name}.onnx"
    path.write_bytes(named_graph(engine, name).SerializeToString())
    return path


def _without_infinities(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_infinities(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_infinities(entry) for entry in value]
    return value


def lines(found: Inspection, *, every_layer: bool) -> Iterator[str]:
    """Yield the lines that `python -m export inspect` prints."""
    for view in found.graphs:
        yield ""
        yield _heading(view)
        yield from table(_operator_rows(view))
        yield from _islands(view)
        if every_layer:
            yield ""
            yield from table(_layer_rows(view))
    for network, differences in found.differences.items():
        yield ""
        yield from _comparison(network, differences, every_layer=every_layer)


def _heading(view: GraphView) -> str:
    timed = f", {view.times.total_ms:.2f} ms by {view.times.runtime}" if view.times else ""
    return (
        f"{view.name}.onnx: {len(view.layers)} layers, {_short(view.parameters)} parameters, "
        f"{_short(view.macs)} MACs for one picture{timed}"
    )


def _operator_rows(view: GraphView) -> Iterator[list[str]]:
    yield ["operator", "layers", "parameters", "MACs", "outputs", *(["ms", "of time"] if view.times else [])]
    for operator, layers in by_operator(view.layers).items():
        row = [
            operator,
            str(len(layers)),
            _short(sum(layer.parameters for layer in layers)),
            _short(sum(layer.macs for layer in layers)),
            ", ".join(
                f"{count} {kind}"
                for kind, count in Counter(layer.precision for layer in layers).most_common()
            ),
        ]
        yield row + _time(view, sum(_layer_ms(view, layer) for layer in layers))
    if view.times and view.times.added:
        names = ", ".join(view.times.added)
        yield [f"added: {names}", "", "", "", "", *_time(view, sum(view.times.added.values()))[-2:]]


def _layer_rows(view: GraphView) -> Iterator[list[str]]:
    heads = ["layer", "operator", "outputs", "shape", "parameters", "MACs"]
    yield heads + (["ms", "of time"] if view.times else [])
    for layer in view.layers:
        row = [
            layer.name,
            layer.operator,
            layer.precision + (" (island)" if layer.island else ""),
            "x".join(map(str, layer.shape)),
            _short(layer.parameters),
            _short(layer.macs),
        ]
        fused = view.times is not None and layer.name not in view.times.by_layer
        yield row + (["fused", ""] if fused else _time(view, _layer_ms(view, layer)))


def _islands(view: GraphView) -> Iterator[str]:
    """List the FP32 layers of an FP16 graph; the same module at several resolutions is one line."""
    if not view.islands:
        return
    places: dict[str, Counter[str]] = {}
    for layer in view.islands:
        module = re.sub(r"\.\d+", ".*", layer.name.rpartition("/")[0])
        places.setdefault(module or "/", Counter())[layer.operator] += 1
    yield f"islands in FP32: {len(view.islands)} of {len(view.layers)} layers"
    for module, operators in places.items():
        yield f"  {module}: " + ", ".join(f"{count} {name}" for name, count in operators.most_common())
    if view.for_range:
        yield f"  of these because of their range: {', '.join(view.for_range)}"


def _comparison(network: str, differences: "Sequence[Difference]", *, every_layer: bool) -> Iterator[str]:
    last = differences[-1]
    compared = f"{network}.fp16.onnx, emulated, against {network}.onnx"
    yield f"{compared}: {last.psnr_db:.1f} dB in the result, {last.layer.output}"
    shown = differences
    if not every_layer:
        shown = sorted(differences, key=lambda one: -one.relative)[:MOST_DIFFERENT]
        yield f"the {len(shown)} of {len(differences)} layers that differ most:"
    yield from table(_difference_rows(shown))


def _difference_rows(differences: "Sequence[Difference]") -> Iterator[list[str]]:
    yield ["layer", "operator", "outputs", "largest difference", "of range", "PSNR"]
    for one in differences:
        layer = one.layer
        figures = [f"{one.largest:.3g}", f"{100 * one.relative:.3f} %", f"{one.psnr_db:.1f} dB"]
        yield [layer.name, layer.operator, layer.precision, *figures]


def _layer_ms(view: GraphView, layer: Layer) -> float:
    return view.times.by_layer.get(layer.name, 0.0) if view.times else 0.0


def _time(view: GraphView, ms: float) -> list[str]:
    return [f"{ms:.3f}", f"{100 * ms / view.times.total_ms:.1f} %"] if view.times else []


def _short(count: int) -> str:
    """Return a number in short form.

    >>> _short(72_500_000_000)
    '72.5 G'
    """
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return str(count)


def table(rows: Iterator[list[str]]) -> Iterator[str]:
    """Yield the rows in columns, with numbers aligned to the right."""
    cells = list(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    left = [not any(row[at][:1].isdigit() for row in cells[1:]) for at in range(len(widths))]
    left[0] = True
    for row in cells:
        padded = (
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(row, widths, left, strict=True)
        )
        yield "  ".join(padded).rstrip()
