"""Read a film, a camera or a stream: its frames with their times, and packets of sound between them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from threading import Event
from typing import Any

import av
from av.error import ExitError, FFmpegError, InvalidDataError

from ..errors import InputError
from .frames import HDR_CURVES, Colors, FilmFrame, upright

Source = str | os.PathLike[str]

OPEN_SECONDS, READ_SECONDS = 20.0, 20.0  # until a stream that gives nothing is an error
MAX_SIDE = 16384
ROUNDING = Fraction(6, 10000)  # seconds: Matroska counts in milliseconds
CUT_OFF = 0.5  # seconds that may be missing at the end without a word
_abandoned: list[Any] = []  # sources that a thread still waits for


class Film:
    """A film that is open for reading.

    Args:
        source: A file, a camera such as /dev/video0, or an address with "://".
        start: Seconds to leave out at the beginning.
        end: Seconds at which to stop, on the source's clock.
        resume: Seconds after the first frame for which there are pictures already; sound comes from the
            beginning.
        sound: Whether to read sound.
        stop: Ends the reading at the next packet when it is set.

    Raises:
        InputError: It cannot be read, or shows nothing.
    """

    def __init__(
        self,
        source: Source,
        *,
        start: float | None = None,
        end: float | None = None,
        resume: Fraction = Fraction(0),
        sound: bool = True,
        stop: Event | None = None,
    ) -> None:
        self.name = os.fspath(source)
        self._container = _open(self.name)
        try:
            self._video = _picture_stream(self._container, self.name)
            self.sound = list(self._container.streams.audio) if sound else []
            # Streams whose format is unknown cannot be copied; FFmpeg calls them "none".
            self.sound = [stream for stream in self.sound if stream.codec_context is not None]
            # A decoder with a thread for each frame loses good frames beside a damaged one.
            self._video.thread_type = "SLICE"
            self.time_base = self._video.time_base or Fraction(1, 90000)
            self.rate = self._video.average_rate or self._video.guessed_rate or Fraction(25)
            begin = self._container.start_time or 0
            self.origin = Fraction(begin, av.time_base) + Fraction(start or 0.0)
            self._start, self._stop, self._resume = start, stop or Event(), resume
            self._end = None if end is None else Fraction(begin, av.time_base) + Fraction(end)
            self.damaged = 0  # packets that could not be decoded
            self.doubled = 0  # frames that had the time of the one before, and were left out
            self.broken: str | None = None  # why the reading ended early
            self._last_seconds = 0.0
            self._frames = self._read()
            self._first = self._first_frame()
        except BaseException:
            self._container.close()
            raise

    @property
    def width(self) -> int:
        """Of the upright frames, even."""
        return self._first.picture.width

    @property
    def height(self) -> int:
        """Of the upright frames, even."""
        return self._first.picture.height

    @property
    def duration(self) -> float | None:
        """Seconds that will be read; None for a camera."""
        whole = self._container.duration
        if not whole or whole < 0:
            return None
        begin = Fraction(self._container.start_time or 0, av.time_base)
        last = begin + Fraction(whole, av.time_base)
        if self._end is not None:
            last = min(last, self._end)
        return max(0.0, float(last - self.origin))

    @property
    def pixel_shape(self) -> Fraction | None:
        """Width of a pixel by its height; None if it is square."""
        shape = self._video.sample_aspect_ratio
        if not shape or shape == 1:
            return None
        return 1 / shape if self._turned else shape

    @property
    def metadata(self) -> dict[str, str]:
        """Title, author and so on."""
        return dict(self._container.metadata)

    def notes(self) -> list[str]:
        """Return what the user should know before the work begins."""
        lines = []
        if self.colors.curve in HDR_CURVES:
            lines.append(
                f"{self.name} is an HDR film ({HDR_CURVES[self.colors.curve]}), and models expect ordinary "
                "color: faces may look pale; convert it to SDR first for the best result"
            )
        if self._deep:
            lines.append(f"{self.name} has more than 8 bits a channel; 8 are written")
        if self._odd:
            lines.append(
                f"{self.name} has an odd size; {self.width}x{self.height} is written, its edge repeated"
            )
        return lines

    def faults(self) -> list[str]:
        """Return what went wrong while reading."""
        lines = []
        if self.broken is not None:
            lines.append(f"{self.name}: reading ended at {self._last_seconds:.1f} s: {self.broken}")
        elif not self._stop.is_set() and (missing := self._missing()) > CUT_OFF:
            lines.append(f"{self.name} is cut off: {missing:.1f} s are missing at its end")
        if self.damaged:
            packets = "1 damaged packet was" if self.damaged == 1 else f"{self.damaged} damaged packets were"
            lines.append(f"{self.name}: {packets} left out or patched up")
        return lines

    def frames(self) -> Iterator[FilmFrame]:
        """Yield all frames; the sound after the last one comes with `rest`."""
        yield self._first
        yield from self._frames

    @property
    def rest(self) -> list[av.Packet[Any]]:
        """The sound that was read after the last frame."""
        return self._sound

    def close(self) -> None:
        """Release the file or device."""
        self._container.close()

    def abandon(self) -> None:
        """Leave the source open for the thread that waits for it, and will until the process ends."""
        _abandoned.append(self._container)
        self.close = lambda: None  # type: ignore[method-assign]

    def __enter__(self) -> Film:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _first_frame(self) -> FilmFrame:
        first = next(self._frames, None)
        if first is not None:
            return first
        if self.broken is not None or self.damaged:
            raise InputError(
                f"{self.name} shows nothing that can be decoded: {self.broken or 'it is damaged'}"
            )
        hint = "; --start and --end leave nothing" if self._start or self._end else ""
        raise InputError(f"{self.name} has no frames{hint}")

    def _missing(self) -> float:
        """Return the seconds of pictures that the file promises and does not have."""
        if self._end is not None or self.duration is None:
            return 0.0
        last = self.duration
        if self._video.duration is not None:
            begin = self._video.start_time or 0
            last = float((begin + self._video.duration) * self.time_base - self.origin)
        return last - self._last_seconds - float(1 / self.rate)

    def _read(self) -> Iterator[FilmFrame]:
        """Decode, turn upright, and give each frame its number, its time and the sound before it."""
        self._sound: list[av.Packet[Any]] = []
        colors: Colors | None = None
        number, shift, last_pts = 0, round(self.origin / self.time_base), None
        for item in self._packets_and_frames():
            if isinstance(item, av.Packet):
                item.pts = None if item.pts is None else item.pts - round(self.origin / item.time_base)
                item.dts = None if item.dts is None else item.dts - round(self.origin / item.time_base)
                self._sound.append(item)
                continue
            if colors is None:
                colors = self.colors = Colors(item)
                size, self._turned = (item.width, item.height), round(item.rotation / 90) % 2 == 1
                self._odd = bool(item.width % 2 or item.height % 2)
                self._deep = any(component.bits > 8 for component in item.format.components)
                if max(size) > MAX_SIDE:
                    raise InputError(
                        f"{self.name} is {size[0]}x{size[1]}; at most {MAX_SIDE} a side can be read"
                    )
            step = max(1, round(1 / self.rate / self.time_base))
            pts = (
                item.pts - shift if item.pts is not None else (last_pts + step if last_pts is not None else 0)
            )
            if last_pts is not None and pts <= last_pts:
                self.doubled += 1
                continue
            if last_pts is None:
                self.first_seconds = pts * self.time_base
            last_pts = pts
            if pts * self.time_base - self.first_seconds < self._resume - ROUNDING:
                continue
            picture = upright(colors.to_yuv(item, *size), item.rotation)
            picture.pts, picture.time_base, picture.pict_type = pts, self.time_base, 0
            self._last_seconds = float(pts * self.time_base)
            yield FilmFrame(picture=picture, number=number, seconds=self._last_seconds, sound=self._sound)
            self._sound, number = [], number + 1

    def _packets_and_frames(self) -> Iterator[av.Packet[Any] | av.VideoFrame]:
        """Yield frames and sound from the start to the end that are asked for."""
        if self._start:
            self._container.seek(max(0, int(self.origin * av.time_base)), backward=True)
        packets = self._container.demux(self._video, *self.sound)
        while not self._stop.is_set():
            try:
                packet = next(packets)
            except (StopIteration, EOFError):
                return
            except (FFmpegError, OSError) as error:
                self.broken = _reason(error)
                yield from self._flushed()
                return
            if packet.stream.index != self._video.index:
                if packet.size and self._wanted(packet.pts, packet.time_base):
                    yield packet
                continue
            try:
                frames = self._video.decode(packet)
                self.damaged += packet.is_corrupt
            except InvalidDataError:
                self.damaged += 1
                continue
            except (FFmpegError, OSError) as error:
                self.broken = _reason(error)
                return
            for frame in frames:
                self.damaged += frame.is_corrupt and not packet.is_corrupt
                seconds = None if frame.pts is None else frame.pts * self.time_base
                if self._end is not None and seconds is not None and seconds >= self._end:
                    return
                if self._wanted(frame.pts, self.time_base):
                    yield frame

    def _flushed(self) -> Iterator[av.VideoFrame]:
        """Yield the frames that the decoder still has."""
        with suppress(FFmpegError):
            yield from (
                frame for frame in self._video.decode(None) if self._wanted(frame.pts, self.time_base)
            )

    def _wanted(self, pts: int | None, time_base: Fraction) -> bool:
        """Return whether a time lies between --start and --end."""
        if pts is None:
            return True
        seconds = pts * time_base
        return not (
            (self._start and seconds < self.origin) or (self._end is not None and seconds >= self._end)
        )


def count_frames(path: Source) -> int:
    """Return how many frames of a film can be decoded; damaged ones do not count."""
    with Film(path, sound=False) as film:
        return sum(1 for _ in film.frames())


def _open(name: str) -> av.container.InputContainer:
    """Open a source; a name without "://" is a file or a device, whatever characters it has."""
    is_address, is_camera = "://" in name, name.startswith("/dev/video")
    if not is_address and not Path(name).exists():
        raise InputError(f"{name} does not exist")
    if Path(name).is_dir():
        raise InputError(f"{name} is a folder; give one film")
    try:
        return av.open(
            name if is_address or is_camera else f"file:{name}",
            format="v4l2" if is_camera else None,
            timeout=(OPEN_SECONDS, READ_SECONDS) if is_address else None,
            metadata_errors="replace",
        )
    except (FFmpegError, OSError, ValueError) as error:
        raise InputError(f"{name} cannot be read as a film: {_reason(error)}") from error


def _picture_stream(container: av.container.InputContainer, name: str) -> av.VideoStream:
    """Return the stream of moving pictures; a cover of music is none."""
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        what = "only sound" if container.streams.audio else "no pictures"
        raise InputError(f"{name} has {what}; expected a film")
    return max(streams, key=lambda stream: stream.width * stream.height)


def _reason(error: BaseException) -> str:
    """Return FFmpeg's reason without its numbers and file names."""
    if isinstance(error, InvalidDataError):
        return "it is damaged, cut off, or in no format that FFmpeg knows"
    if isinstance(error, ExitError):
        return f"nothing came for {READ_SECONDS:g} s"
    return getattr(error, "strerror", None) or str(error)
