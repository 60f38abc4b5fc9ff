"""The result of a comparison as text, Markdown and JSON.

format, version   "psp_rt.evaluation", 1
conventions       what the figures mean
data              how many photos, which were left out and why
machine           device, threads, PyTorch
identity          hash of the identity network, None without one
rows              for each model: what it is, mean figures, and all of them photo by photo
paper             Table 1, quoted
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from trainer.evaluation import paper
from trainer.evaluation.entrants import Entrant
from trainer.evaluation.measure import CHUNK, WARM_UP, Figures
from trainer.losses.lpips import LOSS_SIZE

FORMAT, VERSION = "psp_rt.evaluation", 1
HEADINGS = ("method", "similarity", "LPIPS", "MSE", "s/image", "photos", "encoder", "task")
Circular = Literal["yes", "no", "not recorded"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model's line."""

    entrant: Entrant
    figures: Figures
    circular: Circular  # whether the similarity is measured by the network that was trained with

    def as_json(self) -> dict[str, Any]:
        """Return means, and the figures of every photo."""
        entrant, figures = self.entrant, asdict(self.figures)
        return {
            "name": entrant.name,
            "task": entrant.recipe.task,
            "encoder": entrant.recipe.encoder,
            "encoder_parameters": entrant.parameters,
            "images_seen": entrant.images_seen,
            "recipe_recorded": entrant.recorded,
            "circular": self.circular if figures["similarity"] else None,
            **{name: mean(values) for name, values in figures.items()},
            "seconds_p50": float(np.median(figures["seconds"])),
            "each": {name: [round(value, 6) for value in values] for name, values in figures.items()},
        }

    def cells(self) -> tuple[str, ...]:
        """Return the line of the table."""
        figures, mark = self.figures, {"yes": " (circular)", "no": "", "not recorded": " (?)"}
        similarity = _shown(figures.similarity, 3)
        return (
            self.entrant.name,
            similarity + mark[self.circular] if figures.similarity else similarity,
            _shown(figures.lpips, 3),
            _shown(figures.mse, 4),
            _shown(figures.seconds, 4),
            str(len(figures.mse)),
            self.entrant.recipe.encoder,
            self.entrant.recipe.task,
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that was measured."""

    rows: Sequence[Row]
    skipped: Mapping[str, str]  # file name -> reason
    machine: Mapping[str, str]
    identity_sha256: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Pixels a side at which pictures are compared."""
        return self.rows[0].entrant.recipe.loss_size

    def conventions(self) -> list[str]:
        """Return what the figures mean, one sentence each."""
        size, said = self.size, []
        paper_size = " as in the paper" if size == 256 else " (the paper: 256x256)"
        said.append(
            f"Pictures are clamped to [-1, 1], the range of MSE, and pooled to {size}x{size}{paper_size}; "
            "inputs are made as in training, unvaried. Means over every photo."
        )
        if size < LOSS_SIZE:
            said.append(
                f"LPIPS looks at pictures enlarged to {LOSS_SIZE}x{LOSS_SIZE}, as in training: its first "
                "layer takes steps of four pixels. Figures of other sizes do not compare with these."
            )
        said.append(
            f"s/image: mean time of one photo alone (batch 1) in PyTorch on {self.machine['device']}, "
            f"waited for, models in turns, {WARM_UP} runs of warm-up before."
        )
        judged = {row.circular for row in self.rows if row.figures.similarity}
        if "yes" in judged:
            said.append(
                "circular: measured by the very network that this run was trained with, so the similarity "
                "says how well the loss was learned, not how alike the faces are."
            )
        if "not recorded" in judged:
            said.append(
                "(?): the file does not say by which identity network it was trained, if by any; the "
                "similarity may be circular."
            )
        if any(not row.entrant.recorded for row in self.rows):
            names = ", ".join(row.entrant.name for row in self.rows if not row.entrant.recorded)
            said.append(f"The file holds no recipe, the task's default was taken: {names}.")
        return said

    def lines(self) -> list[tuple[str, ...]]:
        """Return the lines of the table: ours, then the paper's."""
        quoted = [
            (f"{row.method} [paper]", f"{row.similarity:.2f}", f"{row.lpips:.2f}", f"{row.mse:.2f}",
             f"{row.seconds:.3f}", "", "", "inversion")
            for row in paper.TABLE_1
        ]  # fmt: skip
        return [row.cells() for row in self.rows] + quoted

    def notes(self) -> list[str]:
        """Return what stands below the table."""
        left_out = [f"Left out: {name}, {reason}." for name, reason in self.skipped.items()]
        return [*self.conventions(), f"[paper]: {paper.NOTE}.", *left_out]

    def as_text(self) -> str:
        """Return the table for a terminal."""
        lines = [HEADINGS, *self.lines()]
        widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
        shown = [
            "  ".join(
                cell.ljust(width) if column in (0, 6, 7) else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([*shown, "", *self.notes()])

    def as_markdown(self) -> str:
        """Return the table for a page."""
        lines = [HEADINGS, ("---", *["---:"] * 5, "---", "---"), *self.lines()]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return table + "\n\n" + "\n".join(f"- {note}" for note in self.notes()) + "\n"

    def as_json(self) -> dict[str, Any]:
        """Return everything."""
        return {
            "format": FORMAT,
            "version": VERSION,
            **self.extra,
            "conventions": self.conventions(),
            "compared_size": self.size,
            "data": {"photos": len(self.rows[0].figures.mse), "left_out": dict(self.skipped)},
            "machine": dict(self.machine),
            "timing": {"batch": 1, "warm_up_runs": WARM_UP, "compared_together": CHUNK},
            "identity": self.identity_sha256,
            "rows": [row.as_json() for row in self.rows],
            "paper": {"note": paper.NOTE, "rows": [asdict(row) for row in paper.TABLE_1]},
        }


def circular(entrant: Entrant, identity_sha256: str | None) -> Circular:
    """Say whether a model was trained with the network that it is measured by."""
    if entrant.recorded and not entrant.recipe.losses.identity:
        return "no"
    if entrant.identity_sha256 is None:
        # A model without a recipe may have been trained with anything.
        return "not recorded"
    return "yes" if entrant.identity_sha256 == identity_sha256 else "no"


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, None where nothing was measured."""
    return float(np.mean(values)) if values else None


def _shown(values: Sequence[float], digits: int) -> str:
    return f"{np.mean(values):.{digits}f}" if values else "-"
