"""The training loop, the same for encoders, generators and joint training.

A run folder holds

    latest.pt       the model, and all that a resumed run needs
    config.json     the settings, resolved (not of joint training)
    log.jsonl       one line per report
    sheet-N.png     pictures after N images
    tensorboard     the reports as curves, if TensorBoard is installed
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from psp_rt.errors import PspError
from trainer.loop.distributed import Interrupted, Team, stop_requests
from trainer.loop.report import LATEST, Column, Means, Progress, first_not_finite, progress_line, reporting

ASK_STEPS = 4  # between two questions among processes whether to stop, which wait for the device

Losses = dict[str, Tensor]


class Training(Protocol):
    """What the loop needs of a training."""

    @property
    def images_seen(self) -> int:
        """How many images the run has trained on."""

    def step(self) -> Losses:
        """Take one optimizer step and return its losses, the one to show first."""

    def evaluate(self, stop_requested: Callable[[], bool]) -> dict[str, float]:
        """Prepare the averaged networks for use and measure them; return early on a stop request."""

    def sheet(self) -> Sequence[Column]:
        """Return pictures to look at."""

    def save(self, path: Path) -> None:
        """Write the checkpoint, completely or not at all."""

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint as if the run had never stopped."""


def run(
    training: Training,
    *,
    total: int,
    report_images: int,
    folder: Path,
    team: Team,
    remedy: str,
    progress: Progress | None = None,
) -> Iterator[dict[str, float]]:
    """Train until `total` images have been seen, yielding each report.

    On Ctrl-C the checkpoint is written before anything slow: torchrun kills a process 30 s after the signal.

    Args:
        training: What to train; it has been started or restored.
        total: Images of the whole run.
        report_images: Images between two reports, each with a checkpoint and a sheet.
        folder: Of the run.
        team: The leading process measures, shows and writes.
        remedy: What to change if the numbers diverge, for the message.
        progress: Where to show how the run is going.

    Raises:
        PspError: A number is no longer finite, or the run was stopped. `latest.pt` is a complete state.
    """
    latest, progress = folder / LATEST, progress or Progress(silent=not team.leads)
    means, steps = Means(training.images_seen), 0
    with stop_requests(answers=team.leads) as stop_requested, reporting(folder, team) as reporter:
        while training.images_seen < total:
            # Take a step.
            before = training.images_seen
            losses = training.step()
            steps += 1
            means.add(losses)
            if progress.is_due():
                loss, speed = (
                    float(next(iter(losses.values()))),
                    means.images_per_second(training.images_seen),
                )
                progress.update(progress_line(training.images_seen, total, speed, loss=loss))

            # Go on, unless there is something to do.
            finished = training.images_seen >= total
            stopping = team.any_stopped(stop_requested(), step=steps, every=ASK_STEPS) and not finished
            due = finished or training.images_seen // report_images > before // report_images
            if not (stopping or due):
                continue

            # Stop: save, and nothing else.
            report = means.report(training.images_seen)
            check_finite(report, training, latest, remedy)
            if stopping:
                if reporter:
                    training.save(latest)
                raise Interrupted(training.images_seen, latest)

            # Report: measure, save and show.
            if reporter:
                report |= training.evaluate(stop_requested if not finished else lambda: False)
                check_finite(report, training, latest, remedy)  # the last step can spoil what its loss hides
                training.save(latest)
                reporter.report(report)
                if finished or not stop_requested():
                    reporter.sheet(training.images_seen, training.sheet())
                progress.clear()
                yield report
            means = Means(training.images_seen)


def check_finite(report: dict[str, float], training: Training, latest: Path, remedy: str) -> None:
    """Raise an error if a number of a report is NaN or infinite."""
    name = first_not_finite(report)
    if name:
        raise diverged(f"{name} is", training.images_seen, latest, remedy)


def diverged(what: str, images_seen: int, latest: Path, remedy: str) -> PspError:
    """Return the error of a run that no longer learns."""
    state = f"{latest} is the last good state" if latest.exists() else "no state was saved yet"
    return PspError(f"{what} no longer a number after {images_seen} images; {state}. {remedy}")
