"""Films through a model: frames and faces in, a film with its sound and its times out. Needs PyAV.

psp_rt.video.translate(translator, "in.mp4", "out.mp4")

    reader      a film, camera or stream: upright frames with their times, and packets of sound
    track       which face is which person, from frame to frame; cuts; steadiness
    stages      find, align, translate and paste the faces of a frame
    pipeline    all of these at once, in threads with short queues between them
    live        the same for a program that has the frames itself
    writer      a film that plays at any moment
"""

from .frames import TrackedFace
from .live import LiveFaces
from .reader import count_frames
from .track import Tracker, TrackingFinder
from .translate import Progress, Report, VideoOptions, time_stages, translate

__all__ = [
    "LiveFaces",
    "Progress",
    "Report",
    "TrackedFace",
    "Tracker",
    "TrackingFinder",
    "VideoOptions",
    "count_frames",
    "time_stages",
    "translate",
]
