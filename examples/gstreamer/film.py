"""A GStreamer pipeline with psp_rt inside: a test picture, a film or a camera in, a window or a film out.

    python examples/gstreamer/film.py sketch.engine                                # in a window
    python examples/gstreamer/film.py sketch.engine --source film.mp4 --encode out.mp4
    python examples/gstreamer/film.py sketch.engine --source /dev/video0

A film keeps its sound, and its ending chooses the container. Ctrl-C and SIGTERM finish it properly. For
`gst-launch-1.0` and other pipelines there is the element of python/psp.py, which replaces faces in place.

The model is an element, `PspRt`, to be put into any pipeline: it takes BGR frames of any size and gives BGR
frames of the model's. Frames are read where GStreamer has them, and written where it wants them. Time stamps,
end of stream and negotiation are GStreamer's own; errors of psp_rt come on the bus as those of any element.
One queue before and one after it let decoding, translating and encoding run at the same time, with four
frames waiting at most; a camera's frames that come too fast are dropped, a film's are not.

GStreamer for Python comes with the system, not from PyPI. On Debian, with a virtual environment that sees it:

    apt install python3-gst-1.0 gir1.2-gst-plugins-base-1.0 gstreamer1.0-plugins-good \\
        gstreamer1.0-plugins-ugly gstreamer1.0-libav gstreamer1.0-x
    /usr/bin/python3 -m venv --system-site-packages .venv && .venv/bin/pip install 'psp_rt[cpu]'

An environment of another Python of the same version (3.11 and 3.11) needs but one link:

    ln -s /usr/lib/python3/dist-packages/gi .venv/lib/python3.11/site-packages/
"""

from __future__ import annotations

import argparse
import ctypes
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

with suppress(OSError):  # no such file on other systems than Linux
    # GStreamer brings libunwind, whose symbols would take the place of the compiler's own in libraries
    # that are loaded later: the first C++ exception in OpenVINO then ended the process.
    ctypes.CDLL("libgcc_s.so.1", mode=ctypes.RTLD_GLOBAL)

import gi
import numpy as np

gi.require_version("Gst", "1.0")
gi.require_version("GstBase", "1.0")
gi.require_version("GstVideo", "1.0")
from gi.repository import GLib, Gst, GstBase, GstVideo  # noqa: E402

import psp_rt  # noqa: E402

Gst.init(None)
ANY_SIZE = Gst.Caps.from_string("video/x-raw, format=BGR")
WAITING = "queue max-size-buffers=2 max-size-bytes=0 max-size-time=0"
MUXERS = {".mp4": "mp4mux", ".m4v": "mp4mux", ".mov": "qtmux", ".mkv": "matroskamux"}
SOUND = "queue max-size-time=0 max-size-bytes=0 max-size-buffers=0 ! audioconvert ! audioresample ! avenc_aac"
ENCODERS = {  # the first that is installed; all but the last are H.264
    "x264enc": "x264enc tune=zerolatency",
    "openh264enc": "openh264enc",
    "avenc_mpeg4": "avenc_mpeg4 bitrate=4000000",
}


class PspRt(GstBase.BaseTransform):
    """Translates every frame with an open translator."""

    __gstmetadata__ = ("psp_rt", "Filter/Effect/Video", "Translates each frame by an engine", "psp_rt")
    __gsttemplates__ = (
        Gst.PadTemplate.new("sink", Gst.PadDirection.SINK, Gst.PadPresence.ALWAYS, ANY_SIZE),
        Gst.PadTemplate.new("src", Gst.PadDirection.SRC, Gst.PadPresence.ALWAYS, ANY_SIZE),
    )

    def __init__(self, translator: psp_rt.Translator) -> None:
        super().__init__()
        self.translator, self.frames, self.seconds = translator, 0, 0.0

    def do_transform_caps(self, direction, caps, only):
        """Say what goes with caps on the other pad: any size in, the model's out, at the same frame rate."""
        found = Gst.Caps.new_empty()
        for structure in map(caps.get_structure, range(caps.get_size())):
            other = ANY_SIZE.get_structure(0).copy()
            if structure.has_field("framerate"):
                other.set_value("framerate", structure.get_value("framerate"))
            if direction == Gst.PadDirection.SINK:
                output = self.translator.manifest.output
                other.set_value("width", output.width)
                other.set_value("height", output.height)
            found.append_structure(other)
        return found.intersect_full(only, Gst.CapsIntersectMode.FIRST) if only else found

    def do_get_unit_size(self, caps):
        """Return the bytes of a frame."""
        return True, GstVideo.VideoInfo.new_from_caps(caps).size

    def do_set_caps(self, source, target):
        """Note where the rows of a frame lie, which begin at multiples of four bytes."""
        self._source, self._target = map(GstVideo.VideoInfo.new_from_caps, (source, target))
        return True

    def do_transform(self, source, target):
        """Translate one frame into the buffer that the next element gets."""
        start = time.perf_counter()
        try:
            with source.map(Gst.MapFlags.READ) as read, target.map(Gst.MapFlags.WRITE) as written:
                self.translator.run(pixels(read, self._source), out=pixels(written, self._target))
        except psp_rt.PspError as error:
            self.post_message(Gst.Message.new_error(self, GLib.Error(str(error)), "in PspRt"))
            return Gst.FlowReturn.ERROR
        self.frames, self.seconds = self.frames + 1, self.seconds + time.perf_counter() - start
        return Gst.FlowReturn.OK


def pixels(mapped: Gst.MapInfo, info: GstVideo.VideoInfo) -> np.ndarray:
    """Return a frame [H, W, 3] where it lies in a buffer."""
    return np.ndarray((info.height, info.width, 3), np.uint8, mapped.data, strides=(info.stride[0], 3, 1))


def source_of(name: str, frames: int, *, sound: bool = False) -> str:
    """Return the elements that give raw frames; with the sound of a film on the way to a muxer."""
    if name == "test":
        size = "video/x-raw, width=320, height=240, framerate=30/1"
        return f"videotestsrc num-buffers={frames} pattern=ball ! {size}"
    if name.startswith("/dev/"):
        return f"v4l2src device={name} ! videoconvert ! queue leaky=downstream max-size-buffers=1"
    film = f'uridecodebin name=source uri="{Path(name).resolve().as_uri()}"'
    return f"{film}  source. ! {SOUND} ! mux.  source." if sound else f"{film}  source."


def has_sound(name: str) -> bool:
    """Return whether a source is a film with sound."""
    if name == "test" or name.startswith("/dev/") or not Path(name).exists():
        return False
    gi.require_version("GstPbutils", "1.0")
    from gi.repository import GstPbutils

    try:
        found = GstPbutils.Discoverer.new(10 * Gst.SECOND).discover_uri(Path(name).resolve().as_uri())
    except GLib.Error:  # no film: the pipeline will say so
        return False
    return bool(found.get_audio_streams())


def sink_of(encoded: Path | None) -> str:
    """Return the elements that show or encode raw frames."""
    if encoded is None:
        return "autovideosink"
    muxer = MUXERS.get(encoded.suffix.lower())
    if muxer is None:
        sys.exit(f"Error: {encoded} does not end like a film; expected {', '.join(MUXERS)}")
    for name, encoder in ENCODERS.items():
        if Gst.ElementFactory.find(name):
            return f'video/x-raw, format=I420 ! {encoder} ! {muxer} name=mux ! filesink location="{encoded}"'
    sys.exit(f"Error: GStreamer has none of {', '.join(ENCODERS)}; apt install gstreamer1.0-plugins-ugly")


def pipeline_of(source: str, element: Gst.Element, sink: str) -> Gst.Pipeline:
    """Return a pipeline of an element between others that are described as for gst-launch-1.0."""
    before, after = f"{source} ! {WAITING} ! videoconvert name=before", f"{WAITING} name=after ! videoconvert"
    pipeline = Gst.parse_launch(f"{before}  {after} ! {sink}")
    pipeline.add(element)
    pipeline.get_by_name("before").link(element)
    element.link(pipeline.get_by_name("after"))
    return pipeline


def run(pipeline: Gst.Pipeline) -> int | None:
    """Play until the end of the stream, an error, or a signal, which ends a film that is written properly.

    Returns:
        The signal, if one ended it.
    """
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    pipeline.set_state(Gst.State.PLAYING)
    bus, wanted = pipeline.get_bus(), Gst.MessageType.EOS | Gst.MessageType.ERROR
    message, told = None, False
    while message is None:
        message = bus.timed_pop_filtered(Gst.SECOND // 5, wanted)
        if received and not told:
            told = True
            pipeline.send_event(Gst.Event.new_eos())
    pipeline.set_state(Gst.State.NULL)
    for number, handler in before.items():
        signal.signal(number, handler)
    if message.type == Gst.MessageType.ERROR:
        error, detail = message.parse_error()
        sys.exit(f"Error: {message.src.get_name()}: {error.message} ({detail})")
    return received[0] if received else None


def main() -> None:
    """Translate a stream."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("engine")
    parser.add_argument("--source", default="test", help="test, /dev/videoN or a file. Default: test")
    parser.add_argument("--frames", type=int, default=300, help="Of the test picture. Default: 300")
    parser.add_argument("--encode", type=Path, metavar="FILE", help="Write a film instead of showing it.")
    arguments = parser.parse_args()

    sound = arguments.encode is not None and has_sound(arguments.source)
    source, sink = source_of(arguments.source, arguments.frames, sound=sound), sink_of(arguments.encode)
    with psp_rt.Translator(arguments.engine) as translator:
        print(f"{arguments.engine} runs on {translator.runs_on}")
        element = PspRt(translator)
        received = run(pipeline_of(source, element, sink))
    rate = element.frames / element.seconds if element.seconds else 0
    print(f"{element.frames} frames; translating alone: {rate:.1f} frames a second")
    if received is not None:
        sys.exit(128 + received)


if __name__ == "__main__":
    main()
