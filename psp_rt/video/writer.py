"""Write a film that plays whatever happens: what is written can be watched at any moment.

MP4 grows in fragments of two seconds, and becomes an ordinary file when it is closed (FFmpeg's
``hybrid_fragmented``); Matroska and WebM are made of clusters anyway.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
from av.bitstream import BitStreamFilterContext
from av.error import FFmpegError

from ..errors import OutputError
from .frames import Colors
from .resume import FirstPart

Codec = Literal["h264", "h265", "vp9", "av1"]

CODECS: tuple[Codec, ...] = ("h264", "h265", "vp9", "av1")
ENDINGS: dict[str, tuple[Codec, ...]] = {  # the first is the default
    ".mp4": ("h264", "h265", "av1", "vp9"),
    ".m4v": ("h264", "h265", "av1", "vp9"),
    ".mov": ("h264", "h265"),
    ".mkv": ("h264", "h265", "vp9", "av1"),
    ".webm": ("vp9", "av1"),
}
ENCODERS = {"h264": "libx264", "h265": "libx265", "vp9": "libvpx-vp9", "av1": "libsvtav1"}
QUALITY = {"h264": 18, "h265": 20, "vp9": 28, "av1": 28}  # constant rate factors that look alike
MAX_QUALITY = {"h264": 51, "h265": 51, "vp9": 63, "av1": 63}
OPTIONS = {
    # Headers that do not depend on the content let --resume join two parts.
    "h264": {"preset": "veryfast", "x264-params": "stitchable=1:open-gop=0"},
    "h265": {"preset": "superfast", "x265-params": "log-level=error:open-gop=0"},
    "vp9": {"deadline": "realtime", "cpu-used": "5", "row-mt": "1", "b": "0"},
    "av1": {"preset": "9"},
}
KEY_SECONDS = 2  # between frames at which a player can start, and that are lost if the process is killed
FRAGMENTS = "+hybrid_fragmented+frag_keyframe+delay_moov+default_base_moof"


def codec_for(path: Path, codec: Codec | None, quality: int | None = None) -> Codec:
    """Return the codec to use for a file.

    Raises:
        OutputError: The ending is unknown, or does not go with the codec, or the quality does not.
    """
    allowed = ENDINGS.get(path.suffix.lower())
    if allowed is None:
        raise OutputError(f"{path} does not end like a film; expected {', '.join(ENDINGS)}")
    if codec is not None and codec not in allowed:
        fitting = ", ".join(ending for ending, codecs in ENDINGS.items() if codec in codecs)
        raise OutputError(f"{path.suffix} does not hold {codec}; use {fitting}, or --codec {allowed[0]}")
    chosen = codec or allowed[0]
    if quality is not None and not 0 <= quality <= MAX_QUALITY[chosen]:
        raise OutputError(f"quality is {quality}; {chosen} takes 0 (best) to {MAX_QUALITY[chosen]}")
    return chosen


class FilmWriter:
    """A film that is being written.

    Args:
        path: Its ending chooses the container.
        width: Of the frames, even.
        height: Of the frames, even.
        time_base: The unit of the frames' times, in seconds.
        rate: Frames a second, on average.
        colors: How the pictures are coded.
        codec: One of `CODECS`.
        quality: Constant rate factor; lower is better and larger.
        sound: Streams whose packets will be copied.
        pixel_shape: Width of a pixel by its height.
        metadata: Title, author and so on.

    Raises:
        OutputError: It cannot be written, or the container cannot hold the sound.
    """

    def __init__(
        self,
        path: Path,
        *,
        width: int,
        height: int,
        time_base: Fraction,
        rate: Fraction,
        colors: Colors,
        codec: Codec,
        quality: int | None = None,
        sound: Sequence[Any] = (),
        pixel_shape: Fraction | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        self.path, self.frames = path, 0
        is_mp4 = path.suffix.lower() in (".mp4", ".m4v", ".mov")
        options = {"flush_packets": "1", **({"movflags": FRAGMENTS} if is_mp4 else {})}
        try:
            self._container = av.open(f"file:{path}", "w", format=_muxer(path), container_options=options)
        except (FFmpegError, OSError) as error:
            raise OutputError(f"{path} cannot be written: {_reason(error)}") from error
        self._container.metadata.update(metadata or {})

        os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder would write about itself to standard error
        crf = QUALITY[codec] if quality is None else quality
        stream: Any = self._container.add_stream(
            ENCODERS[codec], rate=rate, options={**OPTIONS[codec], "crf": str(crf)}
        )
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.time_base = stream.time_base = time_base
        context.gop_size = max(1, round(KEY_SECONDS * rate))
        context.color_range, context.colorspace = colors.range, colors.space
        context.color_primaries, context.color_trc = colors.primaries, colors.curve
        context.flags |= av.codec.context.Flags.frame_duration
        if pixel_shape is not None:
            context.sample_aspect_ratio = pixel_shape
        self._video = stream
        self._sound = {source.index: self._copied(source) for source in sound}
        # Sound of broadcasts and streams has headers of its own, which files do not want.
        self._unpack = {
            source.index: BitStreamFilterContext("aac_adtstoasc", source)
            for source in sound
            if source.codec_context.name == "aac" and not source.codec_context.extradata
        }
        try:
            self._container.start_encoding()
        except (FFmpegError, OSError, ValueError) as error:
            self._discard()
            raise OutputError(
                f"{path} cannot be written as {codec}, {width}x{height}: {_reason(error)}; "
                "try another --codec"
            ) from error

    def write(self, picture: av.VideoFrame, sound: Sequence[av.Packet[Any]] = ()) -> None:
        """Add a frame and the sound that was read before it.

        Raises:
            OutputError: The disk is full, or fails.
        """
        self.write_sound(sound)
        try:
            self._container.mux(self._video.encode(picture))
        except (FFmpegError, OSError) as error:
            raise self._failure(error) from error
        self.frames += 1

    def begin_with(self, part: FirstPart, first: Fraction, sound: Sequence[av.Packet[Any]]) -> None:
        """Begin with the pictures of an earlier film.

        Args:
            part: That film.
            first: Seconds at which its first frame is.
            sound: All that comes before the next frame.

        Raises:
            OutputError: They are coded in another way.
        """
        context = self._video.codec_context
        part.check_fits(bytes(context.extradata or b""), context.width, context.height)
        waiting = list(reversed(sound))
        try:
            for packet in part.packets(first):
                seconds = (packet.dts or 0) * packet.time_base
                while waiting and (waiting[-1].dts or 0) * waiting[-1].time_base <= seconds:
                    self.write_sound([waiting.pop()])
                packet.stream = self._video
                self._container.mux(packet)
        except (FFmpegError, OSError) as error:
            raise self._failure(error) from error
        self.write_sound(waiting[::-1])
        self.frames = part.frames

    def write_sound(self, packets: Sequence[av.Packet[Any]]) -> None:
        """Copy packets of sound."""
        try:
            for packet in packets:
                number = packet.stream.index
                unpack = self._unpack.get(number)
                for plain in [packet] if unpack is None else unpack.filter(packet):
                    plain.stream = self._sound[number]
                    self._container.mux(plain)
        except (FFmpegError, OSError) as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Encode what is left, and finish the file.

        Raises:
            OutputError: The disk is full, or fails. What was written before plays.
        """
        try:
            if self.frames:
                self._container.mux(self._video.encode(None))
            self._container.close()
        except (FFmpegError, OSError) as error:
            self.abandon()
            raise self._failure(error) from error

    def abandon(self) -> None:
        """Close the file as it is; after an error."""
        with suppress(FFmpegError, OSError):
            self._container.close()

    def _copied(self, source: Any) -> Any:
        try:
            return self._container.add_stream_from_template(source)
        except (ValueError, FFmpegError) as error:
            self._discard()
            raise OutputError(
                f"{self.path.suffix} cannot hold the film's sound ({source.codec_context.name}); "
                "write .mkv, or leave the sound out with --no-sound"
            ) from error

    def _discard(self) -> None:
        """Remove what is not a film yet."""
        self.abandon()
        self.path.unlink(missing_ok=True)

    def _failure(self, error: Exception) -> OutputError:
        reason = _reason(error)
        if getattr(error, "errno", None) == errno.ENOSPC:
            reason = "the disk is full"
        return OutputError(
            f"{self.path} cannot be written any further: {reason}; what is on the disk plays, "
            "and --resume goes on from there"
        )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _muxer(path: Path) -> str:
    """Return FFmpeg's name of a container."""
    return {".mkv": "matroska", ".webm": "webm", ".mov": "mov"}.get(path.suffix.lower(), "mp4")


def check_target(path: str | os.PathLike[str]) -> None:
    """Raise OutputError if a film cannot be written there."""
    parent = Path(path).parent
    if not parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {parent}")
