"""A face in a picture: its landmarks, and the square that FFHQ alignment cuts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]

# Vertices of MediaPipe's face mesh. Left and right are those of the picture.
LEFT_EYE = (33, 160, 158, 133, 153, 144)
RIGHT_EYE = (362, 385, 387, 263, 373, 380)
MOUTH_CORNERS = (61, 291)
OVAL = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)


@dataclass(frozen=True, eq=False)
class Face:
    """A face that was found.

    Args:
        landmarks: The mesh's 468 vertices in pixels of the upright picture, [468, 2] as (x, y). As in
            OpenCV and dlib, (0, 0) is the center of the first pixel.
        score: The detector's confidence, 0 to 1.
    """

    landmarks: Points
    score: float

    @cached_property
    def quad(self) -> Points:
        """The square to cut, [4, 2] as (x, y): top left, bottom left, bottom right, top right.

        FFHQ's formula (Karras et al., arXiv:1812.04948, appendix): centered a tenth of the way from eyes
        to mouth, its side the larger of 4 times the distance between the eyes and 3.6 times that between
        eyes and mouth, turned by the average of the two directions.
        """
        left, right, mouth = self.eyes[0], self.eyes[1], self.mouth
        between_eyes = right - left
        eyes = (left + right) / 2
        to_mouth = mouth - eyes
        x = between_eyes + np.array([to_mouth[1], -to_mouth[0]])
        x *= max(2.0 * np.hypot(*between_eyes), 1.8 * np.hypot(*to_mouth)) / np.hypot(*x)
        y = np.array([-x[1], x[0]])
        center = eyes + 0.1 * to_mouth
        return np.stack([center - x - y, center - x + y, center + x + y, center + x - y])

    @cached_property
    def eyes(self) -> Points:
        """The centers of the eyes, [2, 2]; the left one in the picture first."""
        return np.stack([self.landmarks[list(LEFT_EYE)].mean(0), self.landmarks[list(RIGHT_EYE)].mean(0)])

    @cached_property
    def mouth(self) -> Points:
        """The middle between the corners of the mouth, [2]."""
        middle: Points = self.landmarks[list(MOUTH_CORNERS)].mean(0)
        return middle

    @property
    def side(self) -> float:
        """The side of the quad in pixels."""
        return float(np.hypot(*(self.quad[3] - self.quad[0])))

    @property
    def turn(self) -> float:
        """How far the face leans clockwise, in degrees from -180 to 180."""
        along = self.quad[3] - self.quad[0]
        return math.degrees(math.atan2(along[1], along[0]))

    @cached_property
    def box(self) -> Points:
        """The smallest upright rectangle around the landmarks, [4]: left, top, right, bottom."""
        return np.concatenate([self.landmarks.min(0), self.landmarks.max(0)])


def largest(faces: Sequence[Face]) -> Face:
    """Return the face with the largest quad."""
    return max(faces, key=lambda face: face.side)
