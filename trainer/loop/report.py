"""Showing how a run goes: a line that moves, one JSON line per report, TensorBoard, picture sheets."""

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image
from torch import Tensor

from psp_rt.errors import OutputError
from trainer.loop import sheet
from trainer.loop.distributed import Team

REFRESH_S = 0.5
SHOWN_FILES = 5


class Reporter:
    """Tell a run's progress to its user and to the files of its folder.

    Args:
        folder: Of the run. `log.jsonl`, `sheet-N.png` and `tensorboard` go there.
        total: Images of the whole run.
        images_seen: Where the run stands.
        stream: For the moving line, which only a terminal gets.
    """

    def __init__(self, folder: Path, *, total: int, images_seen: int, stream: TextIO | None = None) -> None:
        self._folder, self._total = folder, total
        self._stream = stream or sys.stderr
        self._first, self._started = images_seen, time.perf_counter()
        self._shown_at = 0.0
        self._board = _tensorboard(folder / "tensorboard")

    def rate(self, images_seen: int) -> float:
        """Return the images a second since the run was started or resumed."""
        return (images_seen - self._first) / max(time.perf_counter() - self._started, 1e-9)

    def progress(self, images_seen: int) -> None:
        """Show how far the run is, at most twice a second."""
        now = time.perf_counter()
        if now - self._shown_at >= REFRESH_S and self._stream.isatty():
            self._shown_at = now
            self._stream.write("\r\x1b[K" + progress_line(images_seen, self._total, self.rate(images_seen)))
            self._stream.flush()

    def report(self, values: Mapping[str, float]) -> None:
        """Write one line of JSON, `images_seen` among its values, and the same as curves."""
        self._clear()
        line = json.dumps({name: round(value, 6) for name, value in values.items()})
        try:
            with (self._folder / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(line + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {self._folder / 'log.jsonl'}: {error}") from error
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, int(values["images_seen"]))

    def sheet(self, images_seen: int, columns: list[Tensor]) -> Path:
        """Write columns of pictures [N, 3, H, W] in [-1, 1] side by side; return the file."""
        path = self._folder / f"sheet-{images_seen}.png"
        try:
            sheet.write(path, columns, scale=2 if sheet.largest(columns) < 128 else 1)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error}") from error
        if self._board:
            with Image.open(path) as picture:
                self._board.add_image("sheet", np.asarray(picture), images_seen, dataformats="HWC")
        return path

    def close(self) -> None:
        """End the line that moves, and the curves."""
        self._clear()
        if self._board:
            self._board.close()

    def _clear(self) -> None:
        if self._stream.isatty():
            self._stream.write("\r\x1b[K")


@contextmanager
def reporting(folder: Path, *, total: int, images_seen: int, team: Team) -> Iterator[Reporter | None]:
    """Give the process that leads a reporter, which ends with the run, and the others None."""
    if not team.leads:
        yield None
        return
    reporter = Reporter(folder, total=total, images_seen=images_seen)
    try:
        yield reporter
    finally:
        reporter.close()


class Means:
    """Means of what steps report, added up on the device, since each look at a number waits for it."""

    def __init__(self, images_before: int) -> None:
        self._before, self._started = images_before, time.perf_counter()
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self.waited_s = 0.0  # for data

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Take in one step, which need not report everything."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def of(self, images_seen: int) -> dict[str, float]:
        """Return the means, how fast the run is and how long it waited for data."""
        means = {name: value.item() / self._counts[name] for name, value in self._sums.items()}
        seconds = time.perf_counter() - self._started  # after .item() has waited
        return {
            "images_seen": images_seen,
            "images_per_second": (images_seen - self._before) / seconds,
            "waited_for_data": self.waited_s / seconds,
            **means,
        }


def is_due(images_seen: int, *, batch: int, every: int) -> bool:
    """Whether the last step reached or passed a multiple of `every` images."""
    return images_seen // every > (images_seen - batch) // every


def broken(values: Mapping[str, float]) -> str | None:
    """Return the name of the first value that is no longer a number."""
    return next((name for name, value in values.items() if not math.isfinite(value)), None)


def left_out(skipped: Mapping[str, str]) -> list[str]:
    """Return lines that say which files were left out and why: the first few, and how many in all."""
    lines = [f"  left out {name}: {reason}" for name, reason in list(skipped.items())[:SHOWN_FILES]]
    return lines + [f"  left out {len(skipped)} in all"] * (len(skipped) > SHOWN_FILES)


def progress_line(images_seen: int, total: int, images_per_second: float) -> str:
    """Return how far a run is, as text.

    >>> progress_line(1500, 6000, 10.0)
    '[#####...............]  25 %  1,500 of 6,000 images  10.0 images/s  8 min left'
    """
    share = min(images_seen / max(total, 1), 1.0)
    bar = "#" * int(20 * share) + "." * (20 - int(20 * share))
    left = duration((total - images_seen) / images_per_second) if images_per_second > 0 else "?"
    return (
        f"[{bar}] {share * 100:3.0f} %  {images_seen:,} of {total:,} images  "
        f"{images_per_second:.1f} images/s  {left} left"
    )


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it.

    >>> duration(5000)
    '1 h 23 min'
    """
    minutes = round(max(seconds, 0) / 60)
    if minutes < 1:
        return f"{max(seconds, 0):.0f} s"
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _tensorboard(folder: Path) -> Any:
    """Return a writer of curves, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder)
