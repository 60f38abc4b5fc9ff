"""Compare two runs: ``python benchmarks/latency.py --compare BEFORE.json AFTER.json``."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure.limits import NAMES as MACHINES
from benchmarks.report.result import FORMAT, VERSION
from benchmarks.report.statistics import Ratio, ratio
from benchmarks.report.tables import Table
from psp_rt import InputError

Key = tuple[str, str, str, int]  # model, contender, stage, batch


@dataclass(frozen=True, kw_only=True)
class Change:
    """How the time of one stage has changed: after / before."""

    key: Key
    ratio: Ratio

    def is_regression(self, bound: float) -> bool:
        """Return whether it is slower than the bound, and not only by chance."""
        return self.key[1] not in MACHINES.values() and self.ratio.value > bound and self.ratio.low > 1


def compare(before: Path, after: Path) -> tuple[list[Change], list[str]]:
    """Return the changes of what both runs have, and remarks on what makes the comparison less reliable.

    Raises:
        InputError: A file is not a result, or the two have nothing in common.
    """
    old, new = read(before), read(after)
    old_samples, new_samples = dict(_samples(old)), dict(_samples(new))
    common = [key for key in old_samples if key in new_samples]
    if not common:
        raise InputError(f"{before} and {after} have no stage of one model and contender in common")
    changes = [Change(key=key, ratio=ratio(new_samples[key], old_samples[key])) for key in common]
    remarks = [
        f"{name} differs: {old['provenance'].get(name)} before, {new['provenance'].get(name)} after"
        for name in ("cpu", "threads")
        if old["provenance"].get(name) != new["provenance"].get(name)
    ]
    for path, content in ((before, old), (after, new)):
        if not content["complete"]:
            remarks.append(f"{path} was interrupted")
    missing = [key for key in old_samples if key not in new_samples]
    remarks += [f"not measured after: {', '.join(map(str, key))}" for key in missing]
    return changes, remarks


def read(path: Path) -> dict[str, Any]:
    """Read a result file."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; expected a file written with --json") from None
    if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise InputError(f"{path} is not a result of this benchmark; expected a file written with --json")
    return content


def _samples(content: dict[str, Any]) -> Iterator[tuple[Key, list[float]]]:
    for model in content["models"]:
        for timing in model["timings"]:
            key = (model["name"], timing["contender"], timing["stage"], timing["batch"])
            yield key, timing["samples_ms"]


def as_table(changes: list[Change], bound: float) -> Table:
    """Return the changes as a table."""
    return Table(
        title="after / before, ratios of medians",
        note=f"With 95 % intervals. A regression is beyond {bound:g}, its interval above 1.",
        columns=("model", "stage", "batch", "contender", "ratio", "from", "to", ""),
        rows=[
            (
                change.key[0],
                change.key[2],
                str(change.key[3]),
                change.key[1],
                f"{change.ratio.value:.3f}",
                f"{change.ratio.low:.3f}",
                f"{change.ratio.high:.3f}",
                "REGRESSION" if change.is_regression(bound) else "",
            )
            for change in changes
        ],
    )
