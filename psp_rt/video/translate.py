"""Translate a film from beginning to end, and stop cleanly at any time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Literal

import av

from ..errors import InputError, PspError
from ..faces import Finder
from ..faces.detect import default_finder
from ..files import check_apart
from ..preparation import faces_of
from ..style import StyleMix
from .frames import FilmFrame
from .pipeline import Pipeline, StageTimes
from .reader import Film, Source
from .resume import FirstPart
from .stages import CutFaces, FindFaces, PasteFaces, ReplaceFrame, SteadyCodes, Styles, Translate, WholeFrame
from .track import Tracker
from .writer import Codec, FilmWriter, check_target, codec_for

if TYPE_CHECKING:
    from ..translator import Translator
    from ..truncation import Truncation

Faces = Literal["largest", "all", "off"]


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """How a film is translated.

    Args:
        faces: Paste the results over "all" faces or the "largest" one; "off" gives the model each whole
            frame, and the film is what the model makes of it. None: "all" for engines that expect aligned
            faces, otherwise "off".
        styles: Styles to mix in, one for each person in the order of their appearance; with fewer styles
            than persons they are used again. One style is for all.
        truncation: As for `Translator.run`.
        start: Seconds to leave out at the beginning.
        end: Seconds at which to stop.
        resume: Go on where the target ended, if it exists; the other options must be the same. People are
            numbered anew.
        side_by_side: Put the original on the left of the result.
        steady: Smooth the places of faces over time.
        smooth: Seconds after which a code counts half in an exponential average of each person's codes:
            calmer faces, whose expressions come later. 0 is no average.
        sound: Copy the sound.
        codec: "h264", "h265", "vp9" or "av1"; None is what the file's ending suggests.
        quality: Constant rate factor of the codec; lower is better and larger.
    """

    faces: Faces | None = None
    styles: list[StyleMix] = field(default_factory=list)
    truncation: Truncation | None = None
    start: float | None = None
    end: float | None = None
    resume: bool = False
    side_by_side: bool = False
    steady: bool = True
    smooth: float = 0.0
    sound: bool = True
    codec: Codec | None = None
    quality: int | None = None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a film is."""

    frames: int
    kept: int  # of them: from before a resumption
    total: int | None  # None for a camera
    seconds: float  # that have passed
    film_seconds: float  # that are written
    faces: int  # in the last frame

    @property
    def rate(self) -> float:
        """Frames a second."""
        return (self.frames - self.kept) / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """An estimate; None if the length is unknown."""
        if self.total is None or not self.rate:
            return None
        return max(0, self.total - self.frames) / self.rate


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was done.

    Args:
        frames: That the film has.
        kept: Of them: from before a resumption.
        with_faces: New frames that had a face.
        persons: How many faces were followed.
        seconds: That it took.
        stopped: Whether `stop` ended it.
        notes: What the user should know: damaged packets, a source that ended early.
        failed: Whether the source ended before its end.
        stages: Where the time went, in the order of the work.
    """

    frames: int
    kept: int
    with_faces: int
    persons: int
    seconds: float
    stopped: bool
    notes: list[str]
    failed: bool
    stages: list[StageTimes]

    @property
    def rate(self) -> float:
        """New frames a second."""
        return (self.frames - self.kept) / max(self.seconds, 1e-9)


def translate(
    translator: Translator,
    source: Source,
    target: str | os.PathLike[str],
    options: VideoOptions | None = None,
    *,
    finder: Finder | None = None,
    stop: Event | None = None,
    on_start: Callable[[list[str]], None] = lambda notes: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Report:
    """Translate a film; its sound, its times and its colors are kept.

    Example:
        >>> report = psp_rt.video.translate(translator, "in.mp4", "out.mp4")
        >>> report.frames
        250

    Args:
        translator: Of an engine that takes pictures.
        source: A file, a camera such as /dev/video0, or an address with "://".
        target: A file that ends with .mp4, .mov, .mkv or .webm.
        options: How.
        finder: Another face detector.
        stop: Ends the work when it is set; the film that is written so far is finished properly.
        on_start: Called with notes about the source before the first frame is written.
        on_progress: Called after each frame.

    Raises:
        InputError: The source cannot be read.
        OutputError: The target cannot be written.
    """
    options, target, stop = options or VideoOptions(), Path(target), stop or Event()
    codec = codec_for(target, options.codec, options.quality)
    check_target(target)
    check_apart(target, source)
    faces = _faces_of(translator, options)
    began = time.perf_counter()
    av.logging.set_level(None)  # FFmpeg would write to standard error; its errors arrive as exceptions

    part = FirstPart(target) if options.resume and target.exists() else None
    with Film(
        source,
        start=options.start,
        end=options.end,
        resume=part.seconds if part else Fraction(0),
        sound=options.sound,
        stop=stop,
    ) as film:
        on_start(film.notes())
        tracker = (
            None
            if faces == "off"
            else Tracker(finder or default_finder(), select=faces, steady=options.steady)
        )
        pipeline = Pipeline(film.frames(), _stages(translator, film, options, tracker), stop=stop)
        writer: FilmWriter | None = None
        with_faces, writing = 0, StageTimes("write")
        frames = iter(pipeline)
        try:
            for frame in frames:
                start = time.perf_counter()
                if writer is None:
                    writer = _open_writer(target, film, frame, codec, options, part)
                writer.write(frame.picture, frame.sound)
                with_faces += bool(frame.faces)
                writing.items, writing.working = (
                    writing.items + 1,
                    writing.working + time.perf_counter() - start,
                )
                on_progress(
                    Progress(
                        frames=writer.frames,
                        kept=part.frames if part else 0,
                        total=_total(film),
                        seconds=time.perf_counter() - began,
                        film_seconds=frame.seconds,
                        faces=len(frame.faces),
                    )
                )
            if writer is not None:
                writer.write_sound(film.rest)
        except BaseException:
            # Whatever happened, the frames before it become a film.
            if writer is not None:
                with suppress(PspError):
                    writer.close()
            raise
        finally:
            frames.close()  # type: ignore[attr-defined]  # a generator
            if pipeline.abandoned:
                film.abandon()
        if writer is None:
            raise InputError(f"{film.name} was stopped before its first frame")
        writer.close()
        return Report(
            frames=writer.frames,
            kept=part.frames if part else 0,
            with_faces=with_faces,
            persons=0 if tracker is None else tracker.persons,
            seconds=time.perf_counter() - began,
            stopped=stop.is_set(),
            notes=film.faults(),
            failed=film.broken is not None,
            stages=[*pipeline.times, writing],
        )


def time_stages(
    translator: Translator,
    source: Source,
    target: str | os.PathLike[str],
    options: VideoOptions | None = None,
    *,
    finder: Finder | None = None,
) -> list[StageTimes]:
    """Translate a film with one stage after the other, each over all frames, and return their times.

    For measurements: all frames are in memory at once. The target is written.
    """
    options, target = options or VideoOptions(), Path(target)
    faces = _faces_of(translator, options)

    def timed(name: str, work: Callable[[], list[FilmFrame]]) -> list[FilmFrame]:
        begin = time.perf_counter()
        frames = work()
        times.append(StageTimes(name, len(frames), time.perf_counter() - begin))
        return frames

    times: list[StageTimes] = []
    with Film(source, start=options.start, end=options.end, sound=options.sound) as film:
        tracker = None if faces == "off" else Tracker(finder or default_finder(), select=faces)
        frames = timed("read", lambda: list(film.frames()))
        for name, work in _stages(translator, film, options, tracker):
            frames = timed(name, lambda work=work, frames=frames: [work(frame) for frame in frames])  # type: ignore[misc]
        codec = codec_for(target, options.codec)

        def write() -> list[FilmFrame]:
            writer = _open_writer(target, film, frames[0], codec, options, None)
            for frame in frames:
                writer.write(frame.picture, frame.sound)
            writer.close()
            return frames

        timed("write", write)
    return times


def _faces_of(translator: Translator, options: VideoOptions) -> Faces:
    """Return which faces to translate, and refuse what cannot be."""
    faces = faces_of(translator.manifest, options.faces)
    if faces == "off" and len(options.styles) > 1:
        raise InputError("several styles are for several faces; with faces off give one")
    return faces


def _stages(
    translator: Translator, film: Film, options: VideoOptions, tracker: Tracker | None
) -> list[tuple[str, Callable[[FilmFrame], FilmFrame]]]:
    """Return what is done to each frame, in its order."""
    spec = translator.manifest.input
    assert spec is not None
    translating = Translate(
        translator, Styles(translator, options.styles), options.truncation, SteadyCodes(options.smooth)
    )
    beside = options.side_by_side
    if tracker is None:
        return [
            ("prepare", WholeFrame(film.colors)),
            ("translate", translating),
            ("replace", ReplaceFrame(film.colors, side_by_side=beside)),
        ]
    return [
        ("find", FindFaces(tracker, film.colors)),
        ("cut", CutFaces(max(spec.height, spec.width))),
        ("translate", translating),
        ("paste", PasteFaces(film.colors, side_by_side=beside)),
    ]


def _open_writer(
    target: Path,
    film: Film,
    first: FilmFrame,
    codec: Codec,
    options: VideoOptions,
    part: FirstPart | None,
) -> FilmWriter:
    """Open the target when the first frame is ready: an error before leaves an older film alone."""
    path = target if part is None else part.temporary()
    writer = FilmWriter(
        path,
        width=first.picture.width,
        height=first.picture.height,
        time_base=film.time_base,
        rate=film.rate,
        colors=film.colors,
        codec=codec,
        quality=options.quality,
        sound=film.sound,
        pixel_shape=film.pixel_shape,
        metadata=film.metadata,
    )
    if part is not None:
        try:
            writer.begin_with(part, film.first_seconds, first.sound)
            os.replace(path, target)  # the file that grows keeps its place on the disk
        except BaseException:
            writer.abandon()
            path.unlink(missing_ok=True)
            raise
        first.sound, writer.path = [], target
    return writer


def _total(film: Film) -> int | None:
    return None if film.duration is None else round(film.duration * film.rate)
