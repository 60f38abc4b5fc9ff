"""What a run has measured, and its JSON file.

    format, version   "psp_rt.latency", 1
    complete          false after an interrupt
    provenance        machine, versions, commit, command
    settings          rounds, warm-up, batch sizes
    models            for each: sizes, work, contenders, timings with all samples, ratios, ceilings,
                      distances from the limit, fresh processes, and the paper's column

What can be derived is derived when the file is written, so an interrupt loses nothing.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks import aims, limit, paper
from benchmarks.agreement import Agreement
from benchmarks.ceilings import Ceilings
from benchmarks.fresh import FreshRun
from benchmarks.timing import Timing
from benchmarks.work import Work
from psp_rt import OutputError

FORMAT, VERSION = "psp_rt.latency", 1


@dataclass(kw_only=True)
class Standing:
    """What became of a contender."""

    name: str
    what: str
    device: str
    precision: str
    status: Literal["timed", "wrong", "unavailable", "failed"]
    reason: str = ""
    agreement: Agreement | None = None


@dataclass(kw_only=True)
class ModelResult:
    """What was measured of one model; it grows while measuring goes on."""

    name: str
    kind: str = ""  # of the encoder; "" for a user's engine
    input: str = ""
    output: str = ""
    engine_bytes: int = 0
    reference: str = ""
    skipped: str = ""  # why nothing was measured
    works: dict[tuple[str, int], Work] = field(default_factory=dict)
    standings: list[Standing] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    ceilings: Ceilings | None = None
    fresh: list[FreshRun] = field(default_factory=list)

    def ready_ceilings(self) -> Ceilings | None:
        """Return the ceilings if they were measured before an interrupt."""
        return self.ceilings if self.ceilings is not None and self.ceilings.measured else None

    def distances(self) -> list[limit.Distance]:
        """Return every stage beside its bound."""
        ceilings = self.ready_ceilings()
        precisions = {standing.name: standing.precision for standing in self.standings}
        return limit.distances(self.timings, self.works, ceilings, precisions) if ceilings else []

    def paper_rows(self, machine: str) -> list[paper.Row]:
        """Return the paper's column, and ours if this is the paper's size."""
        ceilings = self.ready_ceilings()
        if ceilings is None:
            return []
        comparable = self.kind and self.output == f"{paper.OUTPUT_SIDE} x {paper.OUTPUT_SIDE}"
        own = paper.ours(self.kind, self.timings, machine) if comparable else []
        return [*paper.quoted(ceilings.macs_per_s()), *own]

    def as_json(self, machine: str) -> dict[str, Any]:
        """Return everything, measured and derived."""
        ceilings = self.ready_ceilings()
        return {
            "name": self.name,
            "encoder": self.kind,
            "input": self.input,
            "output": self.output,
            "skipped": self.skipped,
            "engine_bytes": self.engine_bytes,
            "reference": self.reference,
            "work": [
                {"graph": graph, "batch": batch, **asdict(work)}
                for (graph, batch), work in self.works.items()
            ],
            "contenders": [asdict(standing) for standing in self.standings],
            "timings": [
                {**asdict(timing), **timing.summary()} for timing in self.timings if timing.samples_ms
            ],
            "ratios": {name: asdict(value) for name, value in aims.measured(self.timings).items()},
            "ceilings": ceilings.as_json() if ceilings else None,
            "limit": [asdict(distance) for distance in self.distances()],
            "fresh": [{**asdict(run), "first_picture_s": run.first_picture_s} for run in self.fresh],
            "paper": [asdict(row) for row in self.paper_rows(machine)],
        }


@dataclass(kw_only=True)
class Results:
    """One run of the benchmark."""

    provenance: dict[str, str]
    settings: dict[str, Any]
    models: list[ModelResult] = field(default_factory=list)
    complete: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return everything."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "complete": self.complete,
            "provenance": self.provenance,
            "settings": self.settings,
            "models": [model.as_json(self.provenance["cpu"]) for model in self.models],
        }


def write_text(path: Path, text: str) -> None:
    """Write a file whole, or leave the one that was there.

    Raises:
        OutputError: It cannot be written.
    """
    unfinished = path.with_name(path.name + ".partial")
    try:
        unfinished.write_text(text)
        os.replace(unfinished, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


def write(path: Path, results: Results) -> None:
    """Write the JSON file."""
    write_text(path, json.dumps(results.as_json(), indent=1, allow_nan=False) + "\n")
