"""Look into an engine: the layers of its graphs, their times here, and how far FP16 is from FP32."""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export.graphs import half_precision
from export.graphs.activations import Feeds
from export.inspect import graph_files
from export.inspect import times as layer_times
from export.inspect.layers import Layer, read_layers
from export.inspect.times import LayerTimes
from psp_rt import EngineFile, FormatError, InputError, Manifest, Translator
from psp_rt.cli.group import require
from psp_rt.engine.ports import graph_ports

if TYPE_CHECKING:
    from export.inspect.differences import Difference
    from export.plan_layers import Plan

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class GraphView:
    """A graph of an engine.

    Args:
        name: "generator.fp16" and the like.
        layers: In their order.
        for_range: The layers that stay FP32 since their numbers would leave FP16's range.
        times: Of its layers; None where nothing was timed.
    """

    name: str
    layers: list[Layer]
    for_range: tuple[str, ...]
    times: LayerTimes | None

    @property
    def parameters(self) -> int:
        """Return how many stored numbers it reads."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        """Return the multiplications of one picture."""
        return sum(layer.macs for layer in self.layers)

    @property
    def islands(self) -> list[Layer]:
        """Return the layers that compute in FP32 in an FP16 graph."""
        return [layer for layer in self.layers if layer.island]


@dataclass(kw_only=True)
class Inspection:
    """What was found in an engine."""

    engine: str
    graphs: list[GraphView] = field(default_factory=list)
    differences: "dict[str, list[Difference]]" = field(default_factory=dict)
    plans: "dict[str, Plan]" = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON knows it: numbers that are none are null."""
        found = {
            "engine": self.engine,
            "graphs": {view.name: asdict(view) for view in self.graphs},
            "differences": {name: [asdict(one) for one in all_] for name, all_ in self.differences.items()},
            "plans": {name: asdict(plan) for name, plan in self.plans.items()},
        }
        plain: dict[str, Any] = _without_infinities(found)
        return plain


def view_graphs(engine: EngineFile, *, time_runs: int, threads: int, report: Report) -> list[GraphView]:
    """Return the graphs of an engine.

    Args:
        engine: The engine.
        time_runs: How often each FP32 graph runs for the times of its layers; 0 for none.
        threads: On the CPU; 0 for one on each physical core.
        report: Called with each step that begins.

    Raises:
        FormatError: A graph is harmful, or its shapes cannot be told.
    """
    views = []
    with tempfile.TemporaryDirectory() as folder:
        for name in graph_files.graph_names(engine):
            try:
                layers = read_layers(graph_files.load(engine, name), batch=1)
            except ValueError as error:
                raise FormatError(f"{engine.path}: {name}.onnx cannot be counted: {error}") from error
            times, half = None, name.endswith(graph_files.FP16_END)
            if time_runs and not half:
                report(f"timing the {name}")
                path, feeds = graph_files.unpack(engine, name, Path(folder)), zeros(engine.manifest, name)
                times = layer_times.measure(path, feeds, threads=threads, runs=time_runs)
            kept = (
                engine.manifest.fp32_layers.get(name.removesuffix(graph_files.FP16_END), ()) if half else ()
            )
            views.append(GraphView(name=name, layers=layers, for_range=tuple(kept), times=times))
    return views


def zeros(manifest: Manifest, name: str) -> Feeds:
    """Return inputs for one picture: how long a graph takes does not depend on them."""
    inputs, _ = graph_ports(manifest, name)
    return {port.name: np.zeros((1, *port.shape), port.dtype) for port in inputs}


def compare_precisions(
    engine: EngineFile, pictures: Sequence[Path], *, save_to: Path | None, report: Report
) -> "dict[str, list[Difference]]":
    """Return how far each layer of the FP16 graphs is from FP32, by network.

    Args:
        engine: The engine.
        pictures: Files or folders; none for a generator alone, which gets a random style.
        save_to: A folder for Polygraphy's files.
        report: Called with each step that begins.

    Raises:
        InputError: There is nothing to compare, or nothing to compare it on.
    """
    with require("--compare", install="pip install '.[cpu,export]'"):
        from export.inspect import differences as layer_differences
    manifest = engine.manifest
    if manifest.precision != "fp16":
        raise InputError(
            f"{engine.path} holds no FP16 graphs; export it with --precision fp16, or leave out --compare"
        )
    if manifest.input is not None and not pictures:
        raise InputError("--compare needs a picture that the model is for; add --pictures FILE_OR_FOLDER")
    images = half_precision.load_pictures(pictures, manifest.input)
    inputs = _inputs(engine.path, images)
    if manifest.noise == "random":
        report("leaving out the generator: it draws new noise at every run")
        inputs.pop("generator")
    differences = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, feeds in inputs.items():
            report(f"comparing the {name} in FP16 with FP32")
            for graph in (name, f"{name}{graph_files.FP16_END}"):
                graph_files.unpack(engine, graph, Path(folder))
            differences[name] = layer_differences.compare(Path(folder), name, feeds, save_to=save_to)
    return differences


def _inputs(path: Path, images: NDArray[np.uint8] | None) -> dict[str, list[Feeds]]:
    """Return what each network runs on: the images, and the codes that FP32 makes of them."""
    with Translator(path, device="cpu", backend="onnxruntime", color="rgb", max_batch=1) as translator:
        if images is None:
            return {"generator": list(half_precision.styled_inputs(translator.sample(0)[None]))}
        shown = images if images.shape[3] == 3 else images[..., 0]
        codes = translator.encode(list(shown))
    return {
        "encoder": [{"image": image[None]} for image in images],
        "generator": list(half_precision.styled_inputs(codes)),
    }


def _without_infinities(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_infinities(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_infinities(entry) for entry in value]
    return value
