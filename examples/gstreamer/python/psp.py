"""A GStreamer element `psp`, for gst-launch-1.0 and every other pipeline.

    export GST_PLUGIN_PATH=$PWD/examples/gstreamer PYTHONPATH=$PWD
    gst-inspect-1.0 psp
    gst-launch-1.0 -e filesrc location=in.mp4 ! decodebin name=in \\
        in. ! queue ! videoconvert ! psp engine=models/inversion.engine ! videoconvert ! x264enc ! out. \\
        in. ! queue ! audioconvert ! avenc_aac ! out. \\
        mp4mux name=out ! filesink location=out.mp4

It takes RGB frames of any size. For engines that expect aligned faces it replaces the faces where they are
and gives frames of the same size; with faces=off, and for all other engines, it gives what the model makes
of the whole frame. Time stamps stay; sound goes around it.

GStreamer for Python comes with the system, not from PyPI. On Debian, with a virtual environment of the same
Python as the system's (3.11 and 3.11), whose packages PYTHONPATH names:

    apt install gstreamer1.0-python3-plugin-loader python3-gst-1.0 gir1.2-gst-plugins-base-1.0 \\
        gstreamer1.0-tools gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly gstreamer1.0-libav
    export PYTHONPATH=$PWD:$PWD/.venv/lib/python3.11/site-packages
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

with suppress(OSError):  # no such file on other systems than Linux
    # GStreamer brings libunwind, whose symbols would take the place of the compiler's own in libraries
    # that are loaded later: the first C++ exception in OpenVINO then ended the process.
    ctypes.CDLL("libgcc_s.so.1", mode=ctypes.RTLD_GLOBAL)

import gi
import numpy as np

gi.require_version("Gst", "1.0")
gi.require_version("GstBase", "1.0")
gi.require_version("GstVideo", "1.0")
from gi.repository import GLib, GObject, Gst, GstBase, GstVideo  # noqa: E402

Gst.init(None)
ANY_SIZE = Gst.Caps.from_string("video/x-raw, format=RGB")
WRITABLE = GObject.ParamFlags.READWRITE


class Psp(GstBase.BaseTransform):
    """Translates every frame by an engine."""

    __gstmetadata__ = ("psp_rt", "Filter/Effect/Video", "Translates faces or frames by an engine", "psp_rt")
    __gsttemplates__ = (
        Gst.PadTemplate.new("sink", Gst.PadDirection.SINK, Gst.PadPresence.ALWAYS, ANY_SIZE),
        Gst.PadTemplate.new("src", Gst.PadDirection.SRC, Gst.PadPresence.ALWAYS, ANY_SIZE),
    )
    engine = GObject.Property(type=str, nick="Engine file", flags=WRITABLE)
    device = GObject.Property(type=str, default="auto", nick="auto, cpu, cuda or cuda:N", flags=WRITABLE)
    faces = GObject.Property(
        type=str,
        default="auto",
        nick="Faces to replace: all, largest, off, or auto",
        blurb="auto: all for engines that expect aligned faces, otherwise off",
        flags=WRITABLE,
    )
    seeds = GObject.Property(
        type=str, default="", nick="Random styles, such as 1,2,3: one for each person", flags=WRITABLE
    )
    layers = GObject.Property(
        type=str, default="", nick="Layers that seeds replace, such as 8-18", flags=WRITABLE
    )
    alpha = GObject.Property(
        type=float, default=1.0, minimum=0.0, maximum=1.0, nick="How far", flags=WRITABLE
    )

    def __init__(self) -> None:
        super().__init__()
        self.frames = 0
        self._translator = self._live = self._style = None
        self._whole = False

    def do_start(self):
        """Open the engine, before the first frame."""
        import psp_rt

        try:
            if not self.engine:
                raise psp_rt.InputError("psp needs an engine: psp engine=models/inversion.engine")
            self._translator = psp_rt.Translator(self.engine, device=self.device, color="rgb")
            seeds = [int(seed) for seed in self.seeds.replace(" ", "").split(",") if seed]
            styles = [
                psp_rt.StyleMix.random(seed, layers=self.layers or None, alpha=self.alpha) for seed in seeds
            ]
            faces = self.faces
            if faces not in ("auto", "all", "largest", "off"):
                raise psp_rt.InputError(f"faces is {faces!r}; expected auto, all, largest or off")
            if faces == "auto":
                faces = "all" if self._translator.manifest.expects_faces else "off"
            self._whole = faces == "off"
            if self._whole:
                self._style = styles[0] if styles else None
            else:
                from psp_rt import faces as finding
                from psp_rt import video

                # In gst-launch-1.0 the finder's networks on OpenVINO 2026.4 end the process by a segmentation
                # fault, whose cause is not found; on ONNX Runtime they run.
                finder = finding.MeshFinder(backend="onnxruntime")
                self._live = video.LiveFaces(self._translator, faces=faces, styles=styles, finder=finder)
        except (psp_rt.PspError, ImportError, ValueError) as error:
            self._fail(error)
            return False
        return True

    def do_stop(self):
        """Release the model."""
        if self._translator is not None:
            self._translator.close()
        self._translator = self._live = None
        return True

    def do_transform_caps(self, direction, caps, only):
        """Say what goes with caps on the other pad: the same, or the model's size for whole frames."""
        found = Gst.Caps.new_empty()
        for structure in map(caps.get_structure, range(caps.get_size())):
            other = structure.copy()
            if self._whole:
                other = ANY_SIZE.get_structure(0).copy()
                if structure.has_field("framerate"):
                    other.set_value("framerate", structure.get_value("framerate"))
                if direction == Gst.PadDirection.SINK:
                    output = self._translator.manifest.output
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
        try:
            with source.map(Gst.MapFlags.READ) as read, target.map(Gst.MapFlags.WRITE) as written:
                frame, result = pixels(read, self._source), pixels(written, self._target)
                if self._live is None:
                    self._translator.run(frame, style=self._style, out=result)
                else:
                    result[...] = self._live(np.ascontiguousarray(frame), source.pts / Gst.SECOND)
        except Exception as error:  # an element has no caller that could catch it
            self._fail(error)
            return Gst.FlowReturn.ERROR
        self.frames += 1
        return Gst.FlowReturn.OK

    def _fail(self, error: BaseException) -> None:
        self.post_message(Gst.Message.new_error(self, GLib.Error(str(error)), "in psp"))


def pixels(mapped: Gst.MapInfo, info: GstVideo.VideoInfo) -> np.ndarray:
    """Return a frame [H, W, 3] where it lies in a buffer."""
    return np.ndarray((info.height, info.width, 3), np.uint8, mapped.data, strides=(info.stride[0], 3, 1))


GObject.type_register(Psp)
__gstelementfactory__ = ("psp", Gst.Rank.NONE, Psp)
