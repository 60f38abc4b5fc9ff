"""Films that tests make and read: discs of one color are the faces, and a click each second is the sound."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from psp_rt.faces import Face
from psp_rt.faces.face import LEFT_EYE, MOUTH_CORNERS, OVAL, RIGHT_EYE

RED, BLUE = (220, 30, 30), (30, 30, 220)
GRAY = 120
SOUND_RATE = 48000


def write(
    path: Path,
    pictures: Iterable[np.ndarray],
    times_ms: Sequence[int],
    *,
    sound: bool = True,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
    tags: dict[str, int] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Write RGB pictures [H, W, 3] at times, with a click at each whole second."""
    container = av.open(str(path), "w")
    video: Any = None
    audio: Any = None
    for picture, time_ms in zip(pictures, times_ms, strict=True):
        if video is None:
            video = container.add_stream(codec, rate=25, options=options or {})
            video.height, video.width = picture.shape[:2]
            video.pix_fmt, video.codec_context.time_base = pix_fmt, Fraction(1, 1000)
            for name, value in (tags or {}).items():
                setattr(video.codec_context, name, value)
            if rotation:
                video.set_display_rotation(rotation)
            if sound:
                audio = container.add_stream("aac" if path.suffix != ".webm" else "libopus", rate=SOUND_RATE)
                audio.layout = "mono"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
        container.mux(video.encode(frame))
    container.mux(video.encode(None))
    if audio is not None:
        count = (times_ms[-1] + 40) * SOUND_RATE // 1000
        wave = np.zeros((1, -(-count // 960) * 960), np.float32)
        for start in range(0, count, SOUND_RATE):
            wave[0, start : start + 96] = 0.9
        for start in range(0, wave.shape[1], 960):
            part = np.ascontiguousarray(wave[:, start : start + 960])
            chunk = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
            chunk.sample_rate, chunk.pts, chunk.time_base = SOUND_RATE, start, Fraction(1, SOUND_RATE)
            container.mux(audio.encode(chunk))
        container.mux(audio.encode(None))
    container.close()
    return path


def discs(
    *places: tuple[float, float, tuple[int, int, int]], size: tuple[int, int] = (160, 96), radius: int = 20
) -> np.ndarray:
    """Return a gray picture with discs at (x, y) in a color; the last is on top."""
    width, height = size
    picture = np.full((height, width, 3), GRAY, np.uint8)
    y, x = np.mgrid[:height, :width]
    for left, top, color in places:
        picture[np.hypot(x - left, y - top) <= radius] = color
    return picture


def face_at(x: float, y: float, side: float, score: float = 0.9) -> Face:
    """Return a face whose quad is centered at (x, y) and has a side."""
    points = np.zeros((468, 2))
    angles = np.linspace(0, 2 * np.pi, len(OVAL), endpoint=False) - np.pi / 2
    points[list(OVAL)] = np.stack([0.3 * np.cos(angles), 0.36 * np.sin(angles)], axis=1)
    points[list(LEFT_EYE)] = -0.125, -0.025
    points[list(RIGHT_EYE)] = 0.125, -0.025
    points[list(MOUTH_CORNERS)] = 0, 0.225
    return Face(points * side + (x, y), score)


class DiscFinder:
    """Finds discs of strong color instead of faces."""

    def __init__(self) -> None:
        self.calls = 0

    def find(self, pixels: np.ndarray) -> list[Face]:
        """Return a face for each color that is seen, the largest first."""
        self.calls += 1
        found = []
        for channel in (0, 2):
            others = np.delete(pixels, channel, axis=2).max(axis=2)
            seen = pixels[..., channel].astype(int) - others > 80
            rows, columns = np.nonzero(seen)
            across = float(np.ptp(rows)) + 1 if len(rows) else 0.0
            if len(rows) > 60 and len(rows) > 0.4 * across**2:  # half of a disc is no face
                found.append(face_at(columns.mean(), rows.mean(), 1.2 * across))
        return sorted(found, key=lambda face: -face.side)


class FollowingDiscFinder(DiscFinder):
    """Follows discs as the mesh follows faces: it jumps onto whatever is largest where it looks."""

    def __init__(self) -> None:
        super().__init__()
        self.glances = self.tracks = 0

    def glance(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Return the boxes of all discs."""
        self.glances += 1
        return [face.box for face in DiscFinder().find(pixels)]

    def track(self, pixels: np.ndarray, last: Face) -> Face | None:
        """Return the largest disc of a region."""
        self.tracks += 1
        found = DiscFinder().find(pixels)
        return found[0] if found else None


def read(path: Path | str, *, cut_off: bool = False) -> tuple[list[Fraction], list[np.ndarray]]:
    """Return the times and the RGB pictures of a film, as a player shows it; the last may be damaged."""
    times, pictures = [], []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        try:
            for frame in container.decode(stream):
                assert frame.pts is not None
                assert stream.time_base is not None
                times.append(frame.pts * stream.time_base)
                pictures.append(frame.to_ndarray(format="rgb24"))
        except av.error.InvalidDataError:
            assert cut_off
    return times, pictures


def clicks(path: Path | str) -> list[float]:
    """Return when the clicks of a film's sound are heard, in seconds."""
    found: list[float] = []
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            assert frame.pts is not None
            loud = np.flatnonzero(np.abs(frame.to_ndarray().reshape(-1)) > 0.4)
            for sample in loud:
                seconds = float(frame.pts * frame.time_base) + sample / frame.sample_rate
                if not found or seconds - found[-1] > 0.5:
                    found.append(seconds)
    return found


def sound_packets(path: Path | str) -> list[bytes]:
    """Return the packets of a film's sound."""
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]
