"""Go on where a film ended: its pictures up to the last key frame are kept, and the rest is made again.

The new part is coded with the same settings, so both share one header. All sound is copied from the source
anew, because the last packets of a file that broke off are not to be trusted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.bitstream import BitStreamFilterContext
from av.error import FFmpegError

from ..errors import OutputError

UNPACK = {"h264": "h264_mp4toannexb", "hevc": "hevc_mp4toannexb"}


class FirstPart:
    """What is kept of a film that ended early.

    Args:
        path: The film.

    Raises:
        OutputError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        last_key, self._first, count = None, 0, 0
        self.frames, self.seconds = 0, Fraction(0)
        try:
            with av.open(f"file:{path}") as container:
                stream = container.streams.video[0]
                self.size = (stream.width, stream.height)
                self.header = bytes(stream.codec_context.extradata or b"")
                self.codec = stream.codec_context.name
                for packet in _packets(container):
                    self._first = packet.pts or 0 if count == 0 else self._first
                    if packet.is_keyframe and packet.pts is not None:
                        last_key, self.frames = packet.pts, count
                    count += 1
                if last_key is not None and stream.time_base is not None:
                    self.seconds = (last_key - self._first) * stream.time_base  # after the first frame
        except (FFmpegError, OSError, IndexError) as error:
            raise OutputError(
                f"{path} cannot be resumed: it is no film that plays; remove it to begin anew"
            ) from error

    def packets(self, first: Fraction) -> Iterator[av.Packet[Any]]:
        """Yield the packets of the pictures that are kept, as an encoder gives them.

        Args:
            first: Seconds at which the first frame is. Matroska moves all times if sound begins before zero.
        """
        with av.open(f"file:{self.path}") as container:
            unpack = UNPACK.get(self.codec)
            filtering = BitStreamFilterContext(unpack, container.streams.video[0]) if unpack else None
            for number, packet in enumerate(_packets(container)):
                if number == self.frames:
                    return
                shift = self._first - round(first / packet.time_base)
                for plain in [packet] if filtering is None else filtering.filter(packet):
                    plain.pts = None if plain.pts is None else plain.pts - shift
                    plain.dts = None if plain.dts is None else plain.dts - shift
                    yield plain

    def check_fits(self, header: bytes, width: int, height: int) -> None:
        """Raise OutputError if the new part would be coded in another way."""
        # The encoder's header is a list of units between start codes; a file stores the same units.
        units = [unit for unit in header.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1") if unit]
        same = self.codec not in UNPACK or all(unit in self.header for unit in units if unit[0] & 31 != 6)
        if self.size != (width, height) or not same:
            raise OutputError(
                f"{self.path} was made with other options, so --resume cannot go on; use the same ones, or "
                "remove it to begin anew"
            )

    def temporary(self) -> Path:
        """Return the name under which the whole film begins to grow."""
        return self.path.with_name(f".psp-rt-{os.urandom(8).hex()}{self.path.suffix}")


def _packets(container: av.container.InputContainer) -> Iterator[av.Packet[Any]]:
    """Yield the packets of the pictures; where a file breaks off, they end."""
    early: list[av.Packet[Any]] = []  # Matroska does not say when the first ones are decoded
    try:
        for packet in container.demux(container.streams.video[0]):
            if not packet.size or packet.is_corrupt:
                continue
            if packet.dts is None:
                early.append(packet)
                continue
            for number, first in enumerate(early):
                first.dts = packet.dts - len(early) + number
            yield from early
            early.clear()
            yield packet
    except (FFmpegError, OSError):
        return
