"""Find, cut and put back faces. Only geometry and two small networks; no translator inside.

for face in psp_rt.faces.find("group.jpg"):
    aligned = psp_rt.faces.crop(photo, face, 256)
"""

from .align import crop, is_aligned
from .detect import Finder, MeshFinder
from .face import Face, largest
from .paste import paste, paste_all
from .photo import AlignedFace, PhotoResult, Selection, align_faces, find, translate_faces, upright_rgb

__all__ = [
    "AlignedFace",
    "Face",
    "Finder",
    "MeshFinder",
    "PhotoResult",
    "Selection",
    "align_faces",
    "crop",
    "find",
    "is_aligned",
    "largest",
    "paste",
    "paste_all",
    "translate_faces",
    "upright_rgb",
]
