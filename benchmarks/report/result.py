"""What a run has measured, and its JSON file.

    format, version   "psp_rt.latency", 1
    complete          false after an interrupt
    provenance        machine, versions, commit, command
    settings          rounds, warm-up, batch sizes
    models            for each: sizes, work, contenders, medians by stage (null: there is no such stage),
                      timings with all samples, ratios, ceilings, distances from the limit, fresh
                      processes, each contender alone in a process, and what scaling left out
    scaling           time and memory against batch, clones and output size, with lines and residuals
    paper             the paper's column next to ours

What can be derived is derived when the file is written, so an interrupt loses nothing.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.contenders.contender import Agreement
from benchmarks.measure.limits import Ceilings, Distance, Peak, Work, distances
from benchmarks.measure.timing import STAGES, ContenderRun, FreshRun, Timing
from benchmarks.report import paper, statistics
from psp_rt.files import write_atomically

FORMAT, VERSION = "psp_rt.latency", 1


@dataclass(kw_only=True)
class ContenderResult:
    """The result of a contender: whether it was timed, and why not."""

    name: str
    what: str
    device: str
    precision: str
    status: Literal["timed", "wrong", "unavailable", "failed"]
    reason: str = ""
    agreement: Agreement | None = None


@dataclass(kw_only=True)
class ModelResult:
    """The measurements of one model; it grows while measuring goes on."""

    name: str
    kind: str = ""  # of the encoder; "" for a user's engine
    input: str = ""
    output: str = ""
    output_pixels: int = 0
    engine_bytes: int = 0
    reference: str = ""
    skipped: str = ""  # why nothing was measured
    works: dict[tuple[str, int], Work] = field(default_factory=dict)
    standings: list[ContenderResult] = field(default_factory=list)
    not_tried: str = ""  # contenders that were not named and cannot run here, and why
    timings: list[Timing] = field(default_factory=list)
    ceilings: dict[str, Ceilings] = field(default_factory=dict)  # by device
    fresh: list[FreshRun] = field(default_factory=list)
    alone: list[ContenderRun] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # points of scaling, and why

    def measured(self) -> list[Timing]:
        """Return what was timed before an interrupt."""
        return [timing for timing in self.timings if timing.samples_ms]

    def ready_ceilings(self) -> dict[str, Ceilings]:
        """Return the ceilings if they were measured before an interrupt."""
        return {device: found for device, found in self.ceilings.items() if found.measured}

    def peaks(self) -> dict[str, Peak]:
        """Return the peak rates of each contender's device in its precision."""
        ceilings = self.ready_ceilings()
        return {
            standing.name: ceilings[standing.device].peak(standing.precision)
            for standing in self.standings
            if standing.device in ceilings
        }

    def distances(self) -> list[Distance]:
        """Return every stage with its bound."""
        return distances(self.timings, self.works, self.peaks())

    def stage_medians(self) -> list[dict[str, Any]]:
        """Return each contender's medians by stage, at each batch; reading is the same for all."""
        found = {(timing.contender, timing.stage, timing.batch): timing.p50_ms for timing in self.measured()}
        keys = dict.fromkeys((name, batch) for name, stage, batch in found if stage == STAGES[-1])
        return [
            {
                "contender": name,
                "batch": batch,
                **{stage: found.get((name, stage, batch)) for stage in STAGES},
                "read": found.get(("all", "read", batch)),
            }
            for name, batch in keys
            if any((name, stage, batch) in found for stage in STAGES[1:-1])
        ]

    def paper_rows(self, machine: str) -> list[paper.Row]:
        """Return our rows for the paper's column, if this is the paper's size."""
        comparable = self.kind and self.output == f"{paper.OUTPUT_SIDE} x {paper.OUTPUT_SIDE}"
        return list(paper.ours(self.kind, self.timings, self.peaks(), machine)) if comparable else []

    def as_json(self) -> dict[str, Any]:
        """Return everything, measured and derived."""
        ceilings = {device: found.as_json() for device, found in self.ready_ceilings().items()}
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
            "not_tried": self.not_tried,
            "stages": self.stage_medians(),
            "timings": [{**asdict(timing), **timing.summary()} for timing in self.measured()],
            "ratios": {name: asdict(value) for name, value in paper.measured_aims(self.timings).items()},
            "ceilings": ceilings.get("cpu"),
            "gpu_ceilings": ceilings.get("cuda"),
            "limit": [asdict(distance) for distance in self.distances()],
            "fresh": [{**asdict(run), "first_picture_s": run.first_picture_s} for run in self.fresh],
            "alone": [asdict(run) for run in self.alone],
            "left_out": self.left_out,
        }


@dataclass(kw_only=True)
class Results:
    """One run of the benchmark."""

    provenance: dict[str, str]
    settings: dict[str, Any]
    models: list[ModelResult] = field(default_factory=list)
    complete: bool = False

    def curves(self) -> list[statistics.Curve]:
        """Return time and memory against batch, clones and output size, if there are several values."""
        found = [
            curve
            for model in self.models
            for curve in statistics.of_model(model.name, model.timings, model.alone)
        ]
        sized = [
            statistics.Sized(
                kind=model.kind,
                megapixels=model.output_pixels / 1e6,
                timings=model.measured(),
                alone=model.alone,
            )
            for model in self.models
        ]
        return [*found, *statistics.of_sizes(sized)]

    def paper_rows(self) -> list[paper.Row]:
        """Return the paper's column next to ours."""
        machine = self.provenance["cpu"]
        gpu = self.provenance.get("gpu", "GPU")
        on_gpu = {row.name for model in self.models for row in model.standings if row.device == "cuda"}
        ours = [row for model in self.models for row in model.paper_rows(machine)]
        named = [replace(row, machine=gpu) if row.contender in on_gpu else row for row in ours]
        return paper.side_by_side(named)

    def as_json(self) -> dict[str, Any]:
        """Return everything."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "complete": self.complete,
            "provenance": self.provenance,
            "settings": self.settings,
            "models": [model.as_json() for model in self.models],
            "scaling": [asdict(curve) for curve in self.curves()],
            "paper": [asdict(row) for row in self.paper_rows()],
        }


def write(path: Path, results: Results) -> None:
    """Write the JSON file."""
    write_atomically(path, json.dumps(results.as_json(), indent=1, allow_nan=False) + "\n")
