"""Find faces with two small networks: BlazeFace for where they are, the attention face mesh for landmarks.

Both are Google's (MediaPipe, Apache-2.0), converted from TFLite to ONNX; see weights/README.md. They run
on ONNX Runtime or OpenVINO, whichever is installed.

    picture -> BlazeFace (256x256)  -> boxes with six points, merged by weighted suppression
    box     -> mesh (192x192)       -> 468 landmarks in a square turned upright by the eyes, then once
                                       more in the square around those landmarks; their mean

Small faces are found in tiles, and a face in doubt is looked at from all four sides.

References: BlazeFace, arXiv:1907.05047; Attention Mesh, arXiv:2006.10962.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from PIL import Image

from ..images import Pixels
from .face import LEFT_EYE, RIGHT_EYE, Face, Points
from .networks import Network

DETECTOR_SIDE, MESH_SIDE = 256, 192  # pixels that the networks read
STRIDES = ((16, 2), (32, 6))  # of BlazeFace's two maps: stride in pixels, anchors at each place
MIN_SCORE = 0.5  # of a box
MIN_MESH_SCORE = 0.3  # that the mesh sees a face at all
SURE = 0.83  # a face of a lower score may stand on its head,
UNSURE = 0.7  # of a still lower one also lie on its side,
LARGE = 0.35  # and so may one that fills this part of the picture's longer side
CONTEXT = 2.2  # side of such a look, as a multiple of the mesh's square
SAME_BOX = 0.3  # overlap (IoU) of boxes that are one face
SAME_FACE = 0.4
MARGIN = 1.55  # side of the mesh's square, as a multiple of the face's
SMALL = 0.12  # of the longer side: where no face is larger, there may be more that only tiles show
BORDER = 0.25  # of black, as a part of the longer side, around a picture in which nothing is found
MAX_FACES = 200
MAX_LOOKS, STEADY = 4, math.radians(5)  # BlazeFace sees half of a large turn; the mesh corrects it in steps

# The eye and lip branches of the mesh are more exact than its main one: mesh vertex <- point of the branch.
_REFINED = {
    "left_eye": dict(zip(LEFT_EYE, (0, 11, 13, 8, 5, 3), strict=True)),
    "right_eye": dict(zip(RIGHT_EYE, (8, 13, 11, 0, 3, 5), strict=True)),
    "lips": {61: 0, 291: 10},
}


class Finder(Protocol):
    """Finds faces; pass another implementation to use another detector."""

    def find(self, pixels: Pixels) -> list[Face]:
        """Return the faces in an upright RGB picture, uint8 [H, W, 3], the largest first."""


@dataclass(frozen=True)
class _Box:
    """A detection in pixels of the picture."""

    score: float
    corners: Points  # [4]: left, top, right, bottom
    eyes: Points  # [2, 2], the left one in the picture first

    @property
    def square(self) -> tuple[Points, float, float]:
        """The mesh's square: center, side and angle in radians."""
        along = self.eyes[1] - self.eyes[0]
        side = MARGIN * float((self.corners[2:] - self.corners[:2]).max())
        return (self.corners[:2] + self.corners[2:]) / 2, side, math.atan2(along[1], along[0])


class MeshFinder:
    """BlazeFace and the attention mesh on a CPU; may be used by several threads.

    Args:
        threads: For each network.
        backend: "onnxruntime" or "openvino"; None takes OpenVINO, the faster one, if it is installed.
    """

    def __init__(self, *, threads: int = 1, backend: str | None = None) -> None:
        self._detector = Network("blazeface_back.onnx", DETECTOR_SIDE, threads, backend)
        self._mesh = Network("face_mesh_attention.onnx", MESH_SIDE, threads, backend)
        self._anchors = _anchors()

    def find(self, pixels: Pixels) -> list[Face]:
        """Return the faces in an upright RGB picture, uint8 [H, W, 3], the largest first."""
        image = Image.fromarray(pixels)  # once: Pillow copies all pixels
        # Everything here counts from the corner of the first pixel, a `Face` from its center.
        return [Face(face.landmarks - 0.5, face.score) for face in self._find(image)]

    def track(self, pixels: Pixels, last: Face) -> Face | None:
        """Return a face near where it was in the last frame, without the detector; None if it is gone."""
        points, score = self._landmarks(Image.fromarray(pixels), *_square_around(last.landmarks + 0.5))
        return Face(points - 0.5, last.score) if score >= MIN_MESH_SCORE else None

    def glance(self, pixels: Pixels) -> list[Points]:
        """Return the boxes [4] of faces that one look of the detector sees, rough and unsorted.

        It is much cheaper than `find`, and sees no faces that are small or far from upright.
        """
        return [box.corners - 0.5 for box in self._boxes(Image.fromarray(pixels))]

    def _find(self, image: Image.Image) -> list[Face]:
        longer = max(image.size)
        boxes = self._boxes(image)
        if longer > DETECTOR_SIDE and all(box.square[1] / MARGIN < SMALL * longer for box in boxes):
            boxes = _without_twins(boxes + self._boxes_in_tiles(image))
        faces = self._faces(image, boxes)
        if faces:
            return faces
        # The face may fill the picture, lie on its side, or stand on its head.
        border = round(BORDER * longer)
        padded = Image.new("RGB", (image.width + 2 * border, image.height + 2 * border))
        padded.paste(image, (border, border))
        for turns in range(4):
            turned = padded.rotate(90 * turns, expand=True)
            faces = self._faces(turned, self._boxes(turned))
            if faces:
                faces = [_turned_back(face, turns, padded.size) for face in faces]
                return [Face(face.landmarks - border, face.score) for face in faces]
        return []

    def _faces(self, image: Image.Image, boxes: list[_Box]) -> list[Face]:
        found: list[Face] = []
        for box in sorted(boxes, key=lambda box: -box.score)[:MAX_FACES]:
            square = box.square
            if box.score < UNSURE or square[1] / MARGIN > LARGE * max(image.size):
                square = self._upright(image, box, quarters=(0, 1, 2, 3))
            elif box.score < SURE:
                square = self._upright(image, box, quarters=(0, 2))
            points, score = self._mesh_from(image, *square)
            face = Face(points, box.score)
            twin = any(_overlap(face.box, other.box[None])[0] > SAME_FACE for other in found)
            if score >= MIN_MESH_SCORE and not twin:
                found.append(face)
        return sorted(found, key=lambda face: -face.side)

    def _mesh_from(
        self, image: Image.Image, center: Points, side: float, angle: float
    ) -> tuple[Points, float]:
        """Return the mesh that is found from a rough square, and its score.

        Each look sees the face a little differently. The mean of the last two is as steady as a third
        look, which would cost a third more.
        """
        last, _ = self._landmarks(image, center, side, angle)
        for _ in range(MAX_LOOKS - 1):
            before = angle
            center, side, angle = _square_around(last)
            points, score = self._landmarks(image, center, side, angle)
            mean = (points + last) / 2
            if abs(math.remainder(angle - before, math.tau)) < STEADY:
                break
            last = points
        return mean, score

    def _upright(
        self, image: Image.Image, box: _Box, *, quarters: tuple[int, ...]
    ) -> tuple[Points, float, float]:
        """Return the mesh's square in the direction in which the detector is most certain of the face.

        Both networks also see a face that stands on its head, the detector with less certainty. The
        difference is clear only with some surroundings, be they black.

        Args:
            image: The picture.
            box: What the detector found.
            quarters: Directions to look from, in quarter turns from that of the box.
        """
        center, side, turn = box.square
        views: list[tuple[float, tuple[Points, float, float]]] = []
        for quarter in quarters:
            angle = turn + quarter * math.pi / 2
            view, to_picture = _turned_square(image, center, CONTEXT * side, angle, DETECTOR_SIDE)
            found = max(self._boxes(view), key=lambda box: box.score, default=None)
            if found is not None:
                own_center, own_side, own_angle = found.square
                back = to_picture[:, :2] @ own_center + to_picture[:, 2]
                views.append(
                    (found.score, (back, own_side * CONTEXT * side / DETECTOR_SIDE, own_angle + angle))
                )
        return max(views, key=lambda view: view[0])[1] if views else box.square

    def _boxes_in_tiles(self, image: Image.Image) -> list[_Box]:
        """Return the detections in 2 x 2 tiles that overlap by a third."""
        width, height = math.ceil(image.width * 0.6), math.ceil(image.height * 0.6)
        boxes = []
        for top in (0, image.height - height):
            for left in (0, image.width - width):
                for box in self._boxes(image.crop((left, top, left + width, top + height))):
                    shift = np.array([left, top], float)
                    boxes.append(_Box(box.score, box.corners + np.tile(shift, 2), box.eyes + shift))
        return boxes

    def _boxes(self, image: Image.Image) -> list[_Box]:
        """Return the detections in a picture, which is fitted into the detector's square."""
        scale = DETECTOR_SIDE / max(image.size)
        fitted = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        left, top = (DETECTOR_SIDE - fitted[0]) // 2, (DETECTOR_SIDE - fitted[1]) // 2
        reading = image.resize(fitted, Image.Resampling.BILINEAR, reducing_gap=1.0)
        square = np.zeros((1, DETECTOR_SIDE, DETECTOR_SIDE, 3), np.float32)
        square[0, top : top + fitted[1], left : left + fitted[0]] = (
            np.asarray(reading, np.float32) / 127.5 - 1
        )

        # Boxes are relative to their anchors: center, size, then six points.
        found = self._detector(square)
        scores = 1 / (1 + np.exp(-np.clip(found["scores"][0, :, 0].astype(float), -80, 80)))
        sure = np.flatnonzero(scores > MIN_SCORE)
        values, anchors = found["boxes"][0, sure].astype(float), self._anchors[sure]
        centers, sizes = values[:, :2] + anchors, values[:, 2:4]
        points = values[:, 4:].reshape(-1, 6, 2) + anchors[:, None]
        rows = np.concatenate(
            [centers - sizes / 2, centers + sizes / 2, points[:, :2].reshape(-1, 4)], axis=1
        )
        offset = np.tile(np.array([left, top], float), 4)
        return [
            _Box(score, row[:4], row[4:].reshape(2, 2))
            for score, row in _merged((rows - offset) / scale, scores[sure])
        ]

    def _landmarks(
        self, image: Image.Image, center: Points, side: float, angle: float
    ) -> tuple[Points, float]:
        """Return the mesh [468, 2] in a turned square of the picture, and the score that it is a face."""
        crop, to_picture = _turned_square(image, center, side, angle, MESH_SIDE)
        found = self._mesh(np.divide(np.asarray(crop)[None], 255, dtype=np.float32))
        points = found["points"].reshape(468, 3)[:, :2].astype(float)
        for branch, vertices in _REFINED.items():
            refined = found[branch].reshape(-1, 2)
            for vertex, point in vertices.items():
                points[vertex] = refined[point]
        score = 1 / (1 + math.exp(-float(np.clip(found["score"].reshape(-1)[0], -80, 80))))
        return points @ to_picture[:, :2].T + to_picture[:, 2], score


@cache
def default_finder() -> MeshFinder:
    """Return the finder of this process, opened on first use."""
    return MeshFinder()


def _anchors() -> Points:
    """Return the centers of BlazeFace's anchors in its square, [896, 2]."""
    centers = []
    for stride, count in STRIDES:
        side = DETECTOR_SIDE // stride
        y, x = np.mgrid[:side, :side]
        grid = (np.stack([x, y], axis=-1).reshape(-1, 2) + 0.5) * stride
        centers.append(np.repeat(grid, count, axis=0))
    return np.concatenate(centers)


def _merged(rows: Points, scores: Points) -> Iterator[tuple[float, Points]]:
    """Yield a score and a row for each group of overlapping boxes: their mean, weighted by the scores.

    The best score leads a group, as in BlazeFace (section 3.4); averaging makes the boxes steadier from
    frame to frame than keeping the best alone.
    """
    left = np.argsort(-scores)
    while len(left):
        twins = _overlap(rows[left[0], :4], rows[left, :4]) > SAME_BOX
        group = left[twins]
        yield float(scores[left[0]]), np.average(rows[group], axis=0, weights=scores[group])
        left = left[~twins]


def _without_twins(boxes: list[_Box]) -> list[_Box]:
    """Return the boxes of several tiles, each face once."""
    kept: list[_Box] = []
    for box in sorted(boxes, key=lambda box: -box.score):
        if not any(_overlap(box.corners, other.corners[None])[0] > SAME_BOX for other in kept):
            kept.append(box)
    return kept


def _overlap(box: Points, others: Points) -> Points:
    """Return the intersection over union of a box [4] with others [N, 4]."""
    corners = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = np.clip(corners, 0, None).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1)
    overlap: Points = common / np.maximum((box[2:] - box[:2]).prod() + areas - common, 1e-9)
    return overlap


def _square_around(points: Points) -> tuple[Points, float, float]:
    """Return the turned square around a mesh: center, side and angle in radians."""
    along = points[263] - points[33]  # the outer corners of the eyes
    angle = math.atan2(along[1], along[0])
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    upright = points @ turn.T
    low, high = upright.min(axis=0), upright.max(axis=0)
    return turn.T @ ((low + high) / 2), MARGIN * float((high - low).max()), angle


def _turned_square(
    image: Image.Image, center: Points, side: float, angle: float, size: int
) -> tuple[Image.Image, Points]:
    """Return a turned square of a picture at a size, and the matrix [2, 3] back to the picture."""
    scale = side / size
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    half = size / 2
    to_picture = np.array(
        [
            [cos, -sin, center[0] - half * cos + half * sin],
            [sin, cos, center[1] - half * sin - half * cos],
        ]
    )
    matrix, factor = to_picture, int(scale)
    if factor > 1:  # reduce first: sampling alone would skip pixels
        left, top = (max(0, int(value - side)) for value in center)
        right = min(image.width, int(center[0] + side) + 1)
        bottom = min(image.height, int(center[1] + side) + 1)
        if min(right - left, bottom - top) > factor:
            image = image.crop((left, top, right, bottom)).reduce(factor)
            matrix = (to_picture - np.array([[0, 0, left], [0, 0, top]])) / factor
    # The landmarks of small faces are more exact if they are enlarged smoothly.
    method = Image.Resampling.BICUBIC if scale < 1 else Image.Resampling.BILINEAR
    return image.transform((size, size), Image.Transform.AFFINE, tuple(matrix.ravel()), method), to_picture


def _turned_back(face: Face, turns: int, size: tuple[int, int]) -> Face:
    """Return a face found in a picture after quarter turns counterclockwise in the picture's own pixels."""
    width, height = size
    x, y = face.landmarks.T
    back = {0: (x, y), 1: (width - y, x), 2: (width - x, height - y), 3: (y, height - x)}[turns]
    return Face(np.stack(back, axis=1), face.score)
