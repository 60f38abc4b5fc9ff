"""What a run shows and leaves: progress, a line of JSON per report, TensorBoard, sheets, the run folder."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from psp_rt.errors import InputError, OutputError
from psp_rt.files import write_atomically
from trainer.loop.distributed import Team

CONFIG, LATEST = "config.json", "latest.pt"
MAY_CHANGE = {"images", "report_images", "checkpoint_images"}  # none of them changes what a step does
BAR_REFRESH_S, LINE_REFRESH_S = 0.5, 10.0  # on a terminal, and elsewhere
SHOWN_FILES = 5
HEADING_PIXELS = 14

Show = Callable[[str, int, int], None]  # what is being done, how much of it is done, how much there is


class Column(NamedTuple):
    """One column of a sheet."""

    heading: str
    pictures: Tensor  # [N, 1 or 3, H, W] in [-1, 1]


class Progress:
    """Show what is going on: a bar that moves on a terminal, a line every ten seconds elsewhere.

    Args:
        stream: Where to show it; standard error by default.
        silent: Show nothing, as the processes of a team do that do not lead.
    """

    def __init__(self, stream: TextIO | None = None, *, silent: bool = False) -> None:
        self._stream, self._silent = stream or sys.stderr, silent
        self._bar = self._stream.isatty()
        self._shown_at, self._shown = -math.inf, ""

    def say(self, text: str) -> None:
        """Show a line that stays."""
        if not self._silent:
            self.clear()
            self._stream.write(text + "\n")
            self._stream.flush()

    def is_due(self) -> bool:
        """Return whether it is time to show where the run stands."""
        return time.monotonic() - self._shown_at >= (BAR_REFRESH_S if self._bar else LINE_REFRESH_S)

    def update(self, text: str) -> None:
        """Show where the run stands: in place on a terminal, as a line elsewhere."""
        if self._silent:
            return
        self._shown_at = time.monotonic()
        if self._bar:
            self._stream.write("\r\x1b[K" + text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def count(self, what: str, done: int, total: int) -> None:
        """Show how far a piece of work is: its name at once, its numbers as time passes."""
        if what != self._shown or self.is_due():
            self._shown = what
            self.update(f"{what}: {done:,} of {total:,}" if done else f"{what} ({total:,})")

    def clear(self) -> None:
        """Remove the bar."""
        if self._bar and not self._silent:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


class Reporter:
    """Write the reports of a run into its folder: `log.jsonl`, `sheet-N.png` and `tensorboard`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._board = folder, _open_tensorboard(folder / "tensorboard")

    def report(self, values: Mapping[str, float]) -> None:
        """Write one line of JSON, `images_seen` among its values, and the same as curves."""
        line = json.dumps({name: round(value, 6) for name, value in values.items()})
        try:
            with (self._folder / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(line + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {self._folder / 'log.jsonl'}: {error}") from error
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, int(values["images_seen"]))

    def sheet(self, images_seen: int, columns: Sequence[Column]) -> Path:
        """Write columns of pictures side by side and return the file."""
        path = self._folder / f"sheet-{images_seen}.png"
        write_sheet(path, columns)
        if self._board:
            with Image.open(path) as picture:
                self._board.add_image("sheet", np.asarray(picture), images_seen, dataformats="HWC")
        return path

    def close(self) -> None:
        """Close the curves."""
        if self._board:
            self._board.close()


@contextmanager
def reporting(folder: Path, team: Team) -> Iterator[Reporter | None]:
    """Yield a reporter in the leading process, None in the others; its curves are closed with the run."""
    if not team.leads:
        yield None
        return
    reporter = Reporter(folder)
    try:
        yield reporter
    finally:
        reporter.close()


class Means:
    """Means of what steps report, summed on the device, because reading a number waits for it."""

    def __init__(self, images_before: int) -> None:
        self._before, self._started = images_before, time.perf_counter()
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one step, which need not report every value."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def images_per_second(self, images_seen: int) -> float:
        """Return the speed since the last report."""
        return (images_seen - self._before) / max(time.perf_counter() - self._started, 1e-9)

    def report(self, images_seen: int) -> dict[str, float]:
        """Return the means and the speed."""
        means = {name: value.item() / self._counts[name] for name, value in self._sums.items()}
        speed = self.images_per_second(images_seen)  # after .item() has waited
        return {"images_seen": images_seen, "images_per_second": speed, **means}


def first_not_finite(values: Mapping[str, float]) -> str | None:
    """Return the name of the first value that is NaN or infinite."""
    return next((name for name, value in values.items() if not math.isfinite(value)), None)


def skipped_lines(skipped: Mapping[str, str]) -> list[str]:
    """Return lines about the files that were left out: the first few with their reason, and how many."""
    lines = [f"  left out {name}: {reason}" for name, reason in list(skipped.items())[:SHOWN_FILES]]
    return lines + [f"  left out {len(skipped)} in all"] * (len(skipped) > SHOWN_FILES)


def progress_line(
    images_seen: int, total: int, images_per_second: float, *, loss: float | None = None
) -> str:
    """Return how far a run is, as text.

    >>> progress_line(1500, 6000, 10.0, loss=0.25)
    '[#####...............]  25 %  1,500 of 6,000 images  10.0 images/s  loss 0.250  8 min left'
    """
    share = min(images_seen / max(total, 1), 1.0)
    bar = "#" * int(20 * share) + "." * (20 - int(20 * share))
    left = duration((total - images_seen) / images_per_second) if images_per_second > 0 else "?"
    shown_loss = "" if loss is None else f"  loss {loss:.3f}"
    return (
        f"[{bar}] {share * 100:3.0f} %  {images_seen:,} of {total:,} images  "
        f"{images_per_second:.1f} images/s{shown_loss}  {left} left"
    )


def duration(seconds: float) -> str:
    """Return a time in a suitable unit.

    >>> duration(5000)
    '1 h 23 min'
    """
    minutes = round(max(seconds, 0) / 60)
    if minutes < 1:
        return f"{max(seconds, 0):.0f} s"
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min" if hours else f"{minutes} min"


def write_sheet(path: Path, columns: Sequence[Column], *, rows: int = 8) -> None:
    """Write columns of pictures side by side under their headings, in blocks of `rows` rows."""
    side = max(column.pictures.shape[2] for column in columns)
    scale = 2 if side < 128 else 1

    # All pictures in one size, as bytes: [N, side, columns * side, 3].
    cells = []
    for column in columns:
        x = torch.nn.functional.interpolate(column.pictures.float(), size=(side, side), mode="nearest")
        x = x.expand(-1, 3, -1, -1).clamp(-1, 1)
        cells.append(((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    lines = np.concatenate(cells, axis=2)

    # Blocks of rows side by side, each under the headings.
    blocks = [np.concatenate(list(lines[at : at + rows])) for at in range(0, len(lines), rows)]
    height = max(len(block) for block in blocks)
    blocks = [np.pad(block, ((0, height - len(block)), (0, 0), (0, 0))) for block in blocks]
    pixels = np.concatenate(blocks, axis=1).repeat(scale, axis=0).repeat(scale, axis=1)
    sheet = Image.new("RGB", (pixels.shape[1], pixels.shape[0] + HEADING_PIXELS), "white")
    sheet.paste(Image.fromarray(pixels), (0, HEADING_PIXELS))
    pen = ImageDraw.Draw(sheet)
    for place, column in enumerate([*columns] * len(blocks)):
        heading = column.heading
        while pen.textlength(heading) > side * scale - 4 and len(heading) > 1:  # else it covers its neighbor
            heading = heading[:-1]
        pen.text((place * side * scale + 2, 1), heading, fill="black")
    try:
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write {path}: {error}") from error


def open_folder(folder: Path, config: Mapping[str, Any]) -> None:
    """Create the folder of a run, or check that an existing one belongs to this run.

    It holds one configuration, so that a resumed run is the same run.

    Raises:
        InputError: The folder holds something else.
        OutputError: It cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CONFIG).exists():
            _check_same(folder, config)
        elif any(folder.iterdir()):
            raise InputError(
                f"{folder} holds files but no {CONFIG}, so it is not the folder of such a run; "
                "choose another --output"
            )
        write_atomically(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error}; choose another --output") from error


def _check_same(folder: Path, config: Mapping[str, Any]) -> None:
    try:
        before = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{folder / CONFIG} is damaged ({error}); choose another --output") from error
    old, new = _flatten(before), _flatten(json.loads(json.dumps(config)))
    different = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    different = [name for name in different if name.split(".")[-1] not in MAY_CHANGE]
    if different:
        shown = "; ".join(f"{name} was {old.get(name)!r}, is {new.get(name)!r}" for name in different[:5])
        raise InputError(
            f"{folder} is the folder of another run: {shown}. "
            "Pass the same settings and files to resume, or another --output for a new run"
        )


def _flatten(values: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {name: values}
    inside = {f"{name}.{key}".lstrip("."): value for key, value in values.items()}
    return {key: value for name, part in inside.items() for key, value in _flatten(part, name).items()}


def _open_tensorboard(folder: Path) -> Any:
    """Return a writer of curves, or None if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder)
