"""The tables of the scaling."""

from collections.abc import Iterator

from benchmarks.report.curves import Axis, Curve
from benchmarks.report.result import Results
from benchmarks.report.tables import Table, ms

AXES: dict[Axis, str] = {"batch": "batch", "clones": "clones at work at once", "size": "output size"}
PER: dict[Axis, str] = {"batch": "picture", "clones": "clone", "size": "megapixel"}


def all_tables(results: Results) -> Iterator[Table]:
    """Yield a table for each axis and model that has curves, and what was left out."""
    curves = results.curves()
    for axis in AXES:
        for model in dict.fromkeys(curve.model for curve in curves if curve.axis == axis):
            yield _table(
                axis, model, [curve for curve in curves if (curve.axis, curve.model) == (axis, model)]
            )
    left_out = [tuple(line.split(": ", 1)) for model in results.models for line in model.left_out]
    if left_out:
        yield Table(title="Scaling: left out", columns=("point", "reason"), rows=left_out)


def _table(axis: Axis, model: str, curves: list[Curve]) -> Table:
    several = axis == "clones"
    return Table(
        title=f"{model}: against {AXES[axis]}",
        note="Medians, and the line of least squares with the root mean square of what it leaves. "
        + _explained(axis),
        columns=(
            "what",
            "contender",
            "unit",
            "measured",
            "fixed",
            f"per {PER[axis]}",
            "residual",
            *(["images/s"] if several else []),
        ),
        rows=[_row(curve, several=several) for curve in curves],
    )


def _explained(axis: Axis) -> str:
    if axis == "clones":
        return "Times are for one picture from each clone, all at once; images/s by the number of clones."
    return "Memory is that of a process with this contender alone."


def _row(curve: Curve, *, several: bool) -> tuple[str, ...]:
    measured = ", ".join(f"{point(curve.axis, x)}: {ms(value)}" for x, value in curve.points)
    line = ("", "", "") if curve.line is None else tuple(
        ms(value) for value in (curve.line.fixed, curve.line.slope, curve.line.residual)
    )  # fmt: skip
    rates = ""
    if curve.unit == "ms":
        rates = ", ".join(f"{x:g}: {1000 * x / value:.3g}" for x, value in curve.points)
    return (curve.what, curve.contender, curve.unit, measured, *line, *([rates] if several else []))


def point(axis: Axis, x: float) -> str:
    """Return a point of an axis as people write it."""
    return f"{(x * 1e6) ** 0.5:.0f}" if axis == "size" else f"{x:g}"
