"""The result of a comparison as text, Markdown and JSON, next to the paper's Table 1.

format, version   "psp_rt.evaluation", 1
conventions       what the figures mean
data              number of photos, which were left out and why
machine           device, threads, PyTorch
identity          hash of the identity network, None without one
rows              for each model: what it is, mean figures, and the figures of every photo
paper             Table 1, quoted
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from trainer.evaluation.measure import CHUNK, WARM_UP, Candidate, Figures
from trainer.losses.lpips import LOSS_SIZE

FORMAT, VERSION = "psp_rt.evaluation", 1
HEADINGS = ("method", "similarity", "LPIPS", "MSE", "s/image", "photos", "encoder", "task")
Circular = Literal["yes", "no", "not recorded"]

# Table 1 of the paper (arXiv:2008.00951): StyleGAN inversion on CelebA-HQ, quoted.
PAPER_NOTE = (
    "quoted from Table 1 of the paper: other data (CelebA-HQ), another card (Tesla P40) and "
    "CurricularFace on faces aligned by MTCNN; for orientation, not for ranking"
)


@dataclass(frozen=True, kw_only=True)
class Quoted:
    """One row of the paper's table."""

    method: str
    similarity: float
    lpips: float
    mse: float
    seconds: float


TABLE_1 = (
    Quoted(method="ALAE", similarity=0.06, lpips=0.32, mse=0.15, seconds=0.207),
    Quoted(method="IDInvert", similarity=0.18, lpips=0.22, mse=0.06, seconds=0.032),
    Quoted(method="W", similarity=0.09, lpips=0.31, mse=0.11, seconds=0.063),
    Quoted(method="naive W+", similarity=0.48, lpips=0.23, mse=0.06, seconds=0.063),
    Quoted(method="pSp", similarity=0.58, lpips=0.19, mse=0.04, seconds=0.106),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model's line."""

    candidate: Candidate
    figures: Figures
    circular: Circular  # whether the similarity is measured by the network of its identity loss

    def as_json(self) -> dict[str, Any]:
        """Return means, and the figures of every photo."""
        candidate, figures = self.candidate, asdict(self.figures)
        return {
            "name": candidate.name,
            "task": candidate.recipe.task,
            "encoder": candidate.encoder,
            "encoder_parameters": candidate.parameters,
            "images_seen": candidate.images_seen,
            "recipe_recorded": candidate.recorded,
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
            self.candidate.name,
            similarity + mark[self.circular] if figures.similarity else similarity,
            _shown(figures.lpips, 3),
            _shown(figures.mse, 4),
            _shown(figures.seconds, 4),
            str(len(figures.mse)),
            self.candidate.encoder,
            self.candidate.recipe.task,
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
        return self.rows[0].candidate.recipe.loss_size

    def conventions(self) -> list[str]:
        """Return what the figures mean, in one sentence each."""
        size, lines = self.size, []
        paper_size = " as in the paper" if size == 256 else " (the paper: 256x256)"
        lines.append(
            f"Pictures are clamped to [-1, 1], the range of MSE, and pooled to {size}x{size}{paper_size}; "
            "inputs are made as in training, unvaried. Means over every photo."
        )
        if size < LOSS_SIZE:
            lines.append(
                f"LPIPS compares pictures enlarged to {LOSS_SIZE}x{LOSS_SIZE}, as in training: its first "
                "layer has a stride of four pixels. Figures of other sizes are not comparable."
            )
        lines.append(
            f"s/image: mean time of one photo alone (batch 1) on {self.machine['device']}, in PyTorch or, "
            f"for an engine, in psp_rt, models in turns, after {WARM_UP} warm-up runs."
        )
        judged = {row.circular for row in self.rows if row.figures.similarity}
        if "yes" in judged:
            lines.append(
                "circular: measured by the same network that this run was trained with, so the similarity "
                "shows how well the loss was learned, not how similar the faces are."
            )
        if "not recorded" in judged:
            lines.append(
                "(?): the file does not record which identity network it was trained with, if any; the "
                "similarity may be circular."
            )
        if any(not row.candidate.recorded for row in self.rows):
            names = ", ".join(row.candidate.name for row in self.rows if not row.candidate.recorded)
            lines.append(f"The file contains no recipe, so the task's default was used: {names}.")
        return lines

    def lines(self) -> list[tuple[str, ...]]:
        """Return the lines of the table: ours, then the paper's."""
        quoted = [
            (f"{row.method} [paper]", f"{row.similarity:.2f}", f"{row.lpips:.2f}", f"{row.mse:.2f}",
             f"{row.seconds:.3f}", "", "", "inversion")
            for row in TABLE_1
        ]  # fmt: skip
        return [row.cells() for row in self.rows] + quoted

    def notes(self) -> list[str]:
        """Return what stands below the table."""
        left_out = [f"Left out: {name}, {reason}." for name, reason in self.skipped.items()]
        return [*self.conventions(), f"[paper]: {PAPER_NOTE}.", *left_out]

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
            "paper": {"note": PAPER_NOTE, "rows": [asdict(row) for row in TABLE_1]},
        }


def circular(candidate: Candidate, identity_sha256: str | None) -> Circular:
    """Return whether a model was trained with the network that it is measured by."""
    if candidate.recorded and not candidate.recipe.losses.identity:
        return "no"
    if candidate.identity_sha256 is None:
        # A model without a recipe may have been trained with anything.
        return "not recorded"
    return "yes" if candidate.identity_sha256 == identity_sha256 else "no"


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, None if nothing was measured."""
    return float(np.mean(values)) if values else None


def _shown(values: Sequence[float], digits: int) -> str:
    return f"{np.mean(values):.{digits}f}" if values else "-"
