"""The pictures of a film: one way to keep them, YUV 4:2:0 of 8 bits, and RGB only where a model needs it.

A frame in which nothing changes is written as it was decoded. Where a face is pasted, only the pixels that
it covers go through RGB, so that all others keep their values, range and matrix.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from ..faces import Face
from ..images import Pixels

Plane = npt.NDArray[np.uint8]

FULL_RANGE, LIMITED_RANGE = 2, 1  # FFmpeg's AVCOL_RANGE
# FFmpeg's color spaces -> those of its scaler; all others are guessed by the height, as players do.
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
BT709, BT601 = 1, 5
HD = 720  # lines from which on a film without a stated matrix is BT.709
HDR_CURVES = {16: "PQ", 18: "HLG"}


@dataclass(frozen=True)
class TrackedFace:
    """A face of a frame, and whose it is."""

    face: Face
    person: int  # 0 for the first one of a film
    shot: int = 1  # in which nothing is carried over from others


@dataclass(kw_only=True)
class FaceFrame:
    """A frame whose faces are translated."""

    seconds: float  # from the start of the film
    rgb: Pixels | None = None  # [H, W, 3]
    faces: list[TrackedFace] = field(default_factory=list)
    crops: list[Pixels] = field(default_factory=list)  # RGB, one for each face
    results: Pixels | None = None  # [N, H, W, 3], RGB


@dataclass(kw_only=True)
class FilmFrame(FaceFrame):
    """A frame of a film on its way through the stages."""

    picture: av.VideoFrame  # yuv420p, upright, of even size: what will be written
    number: int
    sound: list[av.Packet[Any]] = field(default_factory=list)  # what was read before this frame


class Colors:
    """How a film codes color, and the ways between that and RGB.

    Each method has a scaler of its own, so it may be called by one thread at a time.
    """

    def __init__(self, frame: av.VideoFrame) -> None:
        is_rgb = frame.format.is_rgb or frame.format.name.startswith("pal")
        self.space = frame.colorspace
        self.range = FULL_RANGE if frame.format.name.startswith("yuvj") else frame.color_range
        self.primaries, self.curve = frame.color_primaries, frame.color_trc
        guess = BT709 if frame.height >= HD else BT601
        if is_rgb:
            self.space, self.range = (1, LIMITED_RANGE) if guess == BT709 else (6, LIMITED_RANGE)
        self._matrix = MATRICES.get(self.space, guess)
        self._scale_range = FULL_RANGE if self.range == FULL_RANGE else LIMITED_RANGE
        self._source_range = FULL_RANGE if is_rgb else self._scale_range
        self._to_yuv, self._to_rgb, self._from_rgb = (VideoReformatter() for _ in range(3))

    def to_yuv(self, frame: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
        """Return a decoded frame as yuv420p of a size; itself if it is that already."""
        return self._to_yuv.reformat(
            frame,
            width,
            height,
            "yuv420p",
            src_colorspace=self._matrix,
            dst_colorspace=self._matrix,
            src_color_range=self._source_range,
            dst_color_range=self._scale_range,
            threads=1,
        )

    def to_rgb(self, picture: av.VideoFrame) -> Pixels:
        """Return a picture as RGB uint8 [H, W, 3]."""
        rgb = self._to_rgb.reformat(
            picture,
            format="rgb24",
            src_colorspace=self._matrix,
            src_color_range=self._scale_range,
            dst_color_range=FULL_RANGE,
            threads=1,
        )
        return plane_of(rgb, 0, channels=3)

    def from_rgb(self, pixels: Pixels) -> av.VideoFrame:
        """Return RGB [H, W, 3], of even size, as a picture of this film."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        return self._from_rgb.reformat(
            frame,
            format="yuv420p",
            dst_colorspace=self._matrix,
            src_color_range=FULL_RANGE,
            dst_color_range=self._scale_range,
            threads=1,
        )


def plane_of(frame: av.VideoFrame, number: int, *, channels: int = 1) -> Plane:
    """Return a plane of a frame, [H, W] or [H, W, channels], in the frame's own memory."""
    plane = frame.planes[number]
    memory: Any = plane  # has the buffer protocol, which its types do not say
    rows: Plane = np.frombuffer(memory, np.uint8).reshape(plane.height, plane.line_size)
    view = rows[:, : plane.width * channels]
    return view if channels == 1 else view.reshape(plane.height, plane.width, channels)


def planes_of(frame: av.VideoFrame) -> list[Plane]:
    """Return the three planes of a yuv420p frame, in its own memory."""
    return [plane_of(frame, number) for number in range(3)]


def from_planes(planes: list[Plane], like: av.VideoFrame) -> av.VideoFrame:
    """Return planes as a frame with the times of another; an odd size is made even by its last row."""
    height, width = planes[0].shape
    frame = av.VideoFrame(width + width % 2, height + height % 2, "yuv420p")
    for target, plane in zip(planes_of(frame), planes, strict=True):
        rows, columns = plane.shape
        target[:rows, :columns] = plane
        target[rows:, :columns] = plane[-1:]
        target[:, columns:] = target[:, columns - 1 : columns]
    return timed_like(frame, like)


def timed_like(frame: av.VideoFrame, like: av.VideoFrame) -> av.VideoFrame:
    """Give a frame the time of another one."""
    frame.pts, frame.duration = like.pts, like.duration
    if like.time_base is not None:
        frame.time_base = like.time_base
    return frame


def upright(picture: av.VideoFrame, rotation: int) -> av.VideoFrame:
    """Return a picture turned as its film says, and of even size; itself if it is so already."""
    turns = round(rotation / 90) % 4  # counterclockwise
    if not turns and picture.width % 2 == 0 and picture.height % 2 == 0:
        return picture
    return from_planes([np.rot90(plane, turns) for plane in planes_of(picture)], picture)


def beside(left: av.VideoFrame, right: av.VideoFrame) -> av.VideoFrame:
    """Return two pictures of one height next to each other."""
    pairs = zip(planes_of(left), planes_of(right), strict=True)
    return from_planes([np.concatenate(pair, axis=1) for pair in pairs], left)


def with_region(
    picture: av.VideoFrame, before: Pixels, after: Pixels, left: int, top: int, colors: Colors
) -> av.VideoFrame:
    """Return a copy of a picture whose region has the pixels of ``after`` where these differ from ``before``.

    Args:
        picture: yuv420p.
        before: The region as RGB, [H, W, 3], of even size and place.
        after: The same with something pasted.
        left: Of the region, even.
        top: Of the region, even.
        colors: Of the film.
    """
    changed = (before != after).any(axis=2)
    coarse = changed.reshape(changed.shape[0] // 2, 2, changed.shape[1] // 2, 2).any(axis=(1, 3))
    new = planes_of(colors.from_rgb(after))
    copy = from_planes(planes_of(picture), picture)
    for plane, pasted, where in zip(planes_of(copy), new, (changed, coarse, coarse), strict=True):
        scale = picture.width // plane.shape[1]
        rows, columns = pasted.shape
        target = plane[top // scale : top // scale + rows, left // scale : left // scale + columns]
        target[where] = pasted[where]
    return copy


def region_of(pixels: Pixels, face: Face) -> tuple[Pixels, Face, tuple[int, int]]:
    """Return the part of a frame that a face needs, the face in it, and where it lies; all even."""
    height, width = pixels.shape[:2]
    margin = face.side * 0.2 + 8
    low = np.maximum(np.floor(face.quad.min(0) - margin), 0).astype(int) // 2 * 2
    high = np.minimum(np.ceil(face.quad.max(0) + margin), (width, height)).astype(int)
    low = np.minimum(low, (width - 2, height - 2))
    high = np.maximum(high + high % 2, low + 2)
    region = pixels[low[1] : high[1], low[0] : high[0]]
    return region, Face(face.landmarks - low, face.score), (int(low[0]), int(low[1]))
