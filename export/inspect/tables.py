"""What `python -m export inspect` prints."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from export.inspect.layers import Layer, by_operator
from export.inspect.report import GraphView, Inspection

if TYPE_CHECKING:
    from export.inspect.differences import Difference
    from export.plan_layers import Plan

MOST_DIFFERENT = 10


def lines(found: Inspection, *, every_layer: bool) -> Iterator[str]:
    """Yield the text of an inspection."""
    for view in found.graphs:
        yield ""
        yield _heading(view)
        yield from _table(_operator_rows(view))
        yield from _islands(view)
        if every_layer:
            yield ""
            yield from _table(_layer_rows(view))
    for network, differences in found.differences.items():
        yield ""
        yield from _comparison(network, differences, every_layer=every_layer)
    for network, plan in found.plans.items():
        yield ""
        yield from _plan(network, plan, every_layer=every_layer)


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
            ", ".join(f"{count} {kind}" for kind, count in Counter(_kinds(layers)).most_common()),
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
    """Tell where an FP16 graph stays FP32, the same module of several resolutions as one."""
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
        yield f"  of these for their range: {', '.join(view.for_range)}"


def _comparison(network: str, differences: "Sequence[Difference]", *, every_layer: bool) -> Iterator[str]:
    last = differences[-1]
    beside = f"{network}.fp16.onnx, emulated, beside {network}.onnx"
    yield f"{beside}: {last.psnr_db:.1f} dB in the result, {last.layer.output}"
    shown = differences
    if not every_layer:
        shown = sorted(differences, key=lambda one: -one.relative)[:MOST_DIFFERENT]
        yield f"the {len(shown)} of {len(differences)} layers that differ most:"
    yield from _table(_difference_rows(shown))


def _difference_rows(differences: "Sequence[Difference]") -> Iterator[list[str]]:
    yield ["layer", "operator", "outputs", "largest difference", "of range", "PSNR"]
    for one in differences:
        layer = one.layer
        figures = [f"{one.largest:.3g}", f"{100 * one.relative:.3f} %", f"{one.psnr_db:.1f} dB"]
        yield [layer.name, layer.operator, layer.precision, *figures]


def _plan(network: str, plan: "Plan", *, every_layer: bool) -> Iterator[str]:
    total_ms = sum(plan.times_ms.values())
    timed = f", {total_ms:.3f} ms for a batch of {plan.batch} by TensorRT's profiler" if total_ms else ""
    yield f"{network}.plan: {len(plan.layers)} layers{timed}"
    if not any(layer.precision for layer in plan.layers):
        yield "it was built without layer information; build it again with psp-rt build to see precisions"
    kinds = Counter((layer.operator, layer.precision) for layer in plan.layers)
    grouped = [["kind", "outputs", "layers"]]
    grouped += [[name, kind, str(count)] for (name, kind), count in kinds.most_common()]
    yield from _table(iter(grouped))
    rows = [["layer", "kind", "outputs", "tactic", *(["ms", "of time"] if total_ms else [])]]
    slowest = sorted(plan.layers, key=lambda layer: -plan.times_ms.get(layer.name, 0.0))
    for layer in plan.layers if every_layer or not total_ms else slowest[:MOST_DIFFERENT]:
        ms = plan.times_ms.get(layer.name, 0.0)
        share = [f"{ms:.4f}", f"{100 * ms / total_ms:.1f} %"] if total_ms else []
        rows.append([layer.name, layer.operator, layer.precision, layer.tactic, *share])
    if every_layer or total_ms:
        yield from _table(iter(rows))


def _kinds(layers: Sequence[Layer]) -> list[str]:
    return [layer.precision for layer in layers]


def _layer_ms(view: GraphView, layer: Layer) -> float:
    return view.times.by_layer.get(layer.name, 0.0) if view.times else 0.0


def _time(view: GraphView, ms: float) -> list[str]:
    return [f"{ms:.3f}", f"{100 * ms / view.times.total_ms:.1f} %"] if view.times else []


def _short(count: int) -> str:
    """Return a number as it is read.

    >>> _short(72_500_000_000)
    '72.5 G'
    """
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return str(count)


def _table(rows: Iterator[list[str]]) -> Iterator[str]:
    """Yield the rows in columns, numbers to the right."""
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
