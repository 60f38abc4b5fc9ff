"""``psp-rt video``: translate a film, a camera or a stream."""

from __future__ import annotations

import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, cast

import click

from ..errors import InputWarning
from ..hardware.choose import BackendName, Device, Precision
from ..preparation import FacesOption, Preparation
from ..style import StyleMix
from ..translator import Translator
from ..truncation import Truncation
from .group import INTERRUPTED, require
from .options import SeedsCommand, StyleOptions, check_takes_pictures, hardware_options, style_options

if TYPE_CHECKING:
    from ..video import Progress, Report

INSTALL_VIDEO = "pip install 'psp_rt[video]'"
TERMINATED = 143  # 128 + SIGTERM
LINE_SECONDS, PAGE_SECONDS = 0.25, 10.0  # between progress lines on a terminal, and in a log


def clock(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Return the seconds of "90", "1:30" or "0:01:30.5"."""
    if value is None:
        return None
    try:
        parts = [float(part) for part in value.split(":")]
        if len(parts) > 3 or any(not 0 <= part < 1e6 for part in parts):
            raise ValueError
    except ValueError:
        expected = "expected seconds or hours:minutes:seconds, such as 90, 1:30 or 0:01:30.5"
        raise click.BadParameter(f"{value!r}; {expected}", ctx=ctx, param=param) from None
    seconds = 0.0
    for part in parts:
        seconds = seconds * 60 + part
    return seconds


@click.command("video", cls=SeedsCommand)
@click.argument("engine", type=click.Path(path_type=Path))
@click.argument("source", metavar="IN")
@click.argument("target", type=click.Path(path_type=Path), metavar="OUT")
@click.option(
    "--faces",
    "select",
    type=click.Choice(["all", "largest", "off"]),
    help="Whose faces to replace; off: the model's picture of the whole frame. Default: all, for engines "
    "that expect aligned faces.",
)
@style_options
@click.option("--start", callback=clock, metavar="TIME", help="Where to begin: 90, 1:30 or 0:01:30.5.")
@click.option("--end", callback=clock, metavar="TIME", help="Where to stop.")
@click.option("--resume", is_flag=True, help="Go on where OUT ended; with the same options.")
@click.option("--side-by-side", is_flag=True, help="Put the original on the left of the result.")
@click.option(
    "--smooth",
    type=click.FloatRange(0, 10),
    default=0.0,
    metavar="SECONDS",
    help="Average each person's code over time: calmer, but expressions come later. Such as 0.1.",
)
@click.option("--no-sound", is_flag=True, help="Leave the sound out.")
@click.option(
    "--codec",
    type=click.Choice(["h264", "h265", "vp9", "av1"]),
    help="Default: h264, which plays everywhere; vp9 for .webm.",
)
@click.option(
    "--quality",
    type=click.IntRange(0, 63),
    metavar="CRF",
    help="Lower is better and larger. Default: 18 for h264, 28 for vp9.",
)
@click.option("--profile", is_flag=True, help="Say at the end where the time went.")
@hardware_options
def video_command(
    *,
    engine: Path,
    source: str,
    target: Path,
    select: FacesOption | None,
    style_from: Path | None,
    seeds: tuple[int, ...] | None,
    layers: str | None,
    alpha: float | None,
    truncation: Truncation | None,
    start: float | None,
    end: float | None,
    resume: bool,
    side_by_side: bool,
    smooth: float,
    no_sound: bool,
    codec: str | None,
    quality: int | None,
    profile: bool,
    device: Device,
    backend: BackendName,
    precision: Precision,
    threads: int | None,
) -> None:
    """Translate the film IN with ENGINE, and write OUT: .mp4, .mov, .mkv or .webm.

    IN is a file, a camera (/dev/video0) or the address of a stream. The faces in it are replaced where they
    are; sound, times and colors stay. OUT plays at any moment, and Ctrl-C finishes it properly. With --seeds
    1 2 3 each person gets a style.
    """
    with require("video", install=INSTALL_VIDEO):
        from .. import video

    styles = StyleOptions(style_from=style_from, seeds=seeds, layers=layers, alpha=alpha)
    styles.check()
    if start is not None and end is not None and end <= start:
        raise click.UsageError("--end is not after --start")
    with (
        Translator(
            engine,
            device=device,
            backend=backend,
            precision=precision,
            threads=threads,
        ) as translator,
        warned_once(Path(source).name),
        stopped_by_signals() as (stop, received),
    ):
        click.echo(f"{engine} runs on {translator.runs_on}", err=True)
        check_takes_pictures(translator, engine)
        # Of the style's picture the largest face, where faces are translated; drawings as they are.
        preparation = Preparation.of(translator.manifest, faces=select, clean=False)
        style = styles.style(translator, preparation)
        if style is not None:
            click.echo(styles.report(translator), err=True)
        progress = ProgressLine()
        report = video.translate(
            translator,
            source,
            target,
            video.VideoOptions(
                faces=select,
                styles=_each(style, seeds),
                truncation=truncation,
                start=start,
                end=end,
                resume=resume,
                side_by_side=side_by_side,
                smooth=smooth,
                sound=not no_sound,
                codec=cast(Any, codec),
                quality=quality,
            ),
            stop=stop,
            on_start=_show,
            on_progress=progress,
        )
    progress.close()
    _show(report.notes)
    if profile:
        for line in profile_of(report):
            click.echo(line, err=True)
    click.echo(_written(report, target))
    if received:
        sys.exit(TERMINATED if received[0] == signal.SIGTERM else INTERRUPTED)
    if report.failed:
        sys.exit(1)


class ProgressLine:
    """Shows how far a film is: one line that changes on a terminal, a line every ten seconds in a log."""

    def __init__(self) -> None:
        self._in_place = sys.stderr.isatty()
        self._shown, self._width = time.monotonic(), 0

    def __call__(self, progress: Progress) -> None:
        """Show it, if it is time."""
        now = time.monotonic()
        if now - self._shown < (LINE_SECONDS if self._in_place else PAGE_SECONDS):
            return
        self._shown = now
        line = progress_line(progress)
        if self._in_place:
            sys.stderr.write("\r" + line.ljust(self._width))
            self._width = len(line)
            sys.stderr.flush()
        else:
            click.echo(line, err=True)

    def close(self) -> None:
        """Go on to the next line."""
        if self._in_place and self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")


def progress_line(progress: Progress) -> str:
    """Return the line for a state of the work."""
    total = f" of {progress.total}" if progress.total else ""
    left = progress.seconds_left
    remaining = "" if left is None else f", {_clock(left)} left"
    found = f"{progress.faces} face{'s' * (progress.faces != 1)}"
    return f"frame {progress.frames}{total}, {progress.rate:.1f} a second{remaining}, {found}"


def profile_of(report: Report) -> Iterator[str]:
    """Yield a table of where the time went, and which stage sets the pace."""
    yield f"{'stage':10} {'items':>6} {'ms each':>8} {'busy':>5}"
    for stage in report.stages:
        each = 1000 * stage.working / max(1, stage.items)
        yield f"{stage.name:10} {stage.items:6d} {each:8.1f} {stage.working / report.seconds:5.0%}"
    slowest = max(report.stages, key=lambda stage: stage.working)
    yield f"{slowest.name} sets the pace"


@contextmanager
def stopped_by_signals() -> Iterator[tuple[Event, list[int]]]:
    """Make Ctrl-C and SIGTERM set an event; a second one ends the process at once."""
    stop, received = Event(), list[int]()

    def note(number: int, frame: object) -> None:
        if received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        received.append(number)
        stop.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop, received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def warned_once(name: str) -> Iterator[None]:
    """Print each kind of warning about pictures once for a film, not for each of its frames."""
    seen: set[str] = set()

    def show(message: Warning | str, *rest: Any, **more: Any) -> None:
        if not isinstance(message, InputWarning):
            shown(message, *rest, **more)
        elif message.kind not in seen:
            seen.add(message.kind)
            click.echo(f"{name}: {message}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", InputWarning)
        shown: Callable[..., None] = warnings.showwarning
        warnings.showwarning = show
        yield


def _show(notes: list[str]) -> None:
    for note in notes:
        click.echo(note, err=True)


def _each(style: StyleMix | None, seeds: tuple[int, ...] | None) -> list[StyleMix]:
    """Return a style for each seed."""
    if style is None:
        return []
    if not seeds:
        return [style]
    alpha = style.alpha.tolist()
    return [StyleMix.random(seed, layers=style.layers, alpha=alpha) for seed in seeds]


def _written(report: Report, target: Path) -> str:
    """Say what was written, and how fast."""
    begun = "stopped; " if report.stopped else ""
    kept = f", {report.kept} of them from before" if report.kept else ""
    return (
        f"{begun}wrote {target}: {report.frames} frames{kept}, {report.with_faces} with faces, "
        f"{report.rate:.1f} a second"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
