"""Which face of a frame is which person.

    a face in the last frame     -> the mesh looks where it should be now; no detector
    the mesh sees it no more     -> hidden: it is expected where it would have gone, for two seconds
    nobody, or every tenth frame -> a glance of the detector; what it sees of others is found exactly
    a cut                        -> everybody is found anew, and recognized by looks if they look the same

Looks are a small picture of the aligned face. Within a scene they tell two people apart, which is all that
is asked of them; they are no identity. With a finder that can only find, all faces are found in each frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..faces import Face, Finder, Selection, crop
from ..faces.face import Points
from ..images import Pixels
from .frames import TrackedFace, region_of
from .steady import Cuts, OneEuro

GLANCE_FRAMES = 10  # between two looks for new faces
FIND_SECONDS = 1.0  # between two thorough looks, while nobody is seen
HIDDEN_SECONDS = 2.0  # for which a person that is hidden is expected back
UNSEEN_GLANCES = 3  # at which the mesh sees a face and the detector none: it is none
SAME_FACE = 0.35  # overlap (IoU) of the boxes of one face
NEAR = 0.6  # of a side: how far from its expected place a person may be,
RUNS = 1.0  # and how much farther for each second in hiding,
LIKE_SIZE = 1.7  # and how many times larger or smaller
LOOK_SIDE = 24  # pixels
# Mean difference of looks, of 1. In 607 pairs of different photos of one person the median is 0.116; in 600
# pairs of two people the first percentile is 0.103, the fifth 0.127. Within one film it is not measured.
LOOKS_LIKE = 0.115
LOOKS_WEIGH = 5.0  # sides of distance for a difference of 1
MOVE_KEPT = 0.5  # of the speed, from frame to frame
JUMP = 0.4  # of a side, from its expected place: the mesh sees somebody else
REGION = 1.2  # half the side of what the mesh is given, as a multiple of the face's box


@runtime_checkable
class TrackingFinder(Finder, Protocol):
    """A finder that follows faces more cheaply than it finds them, as `psp_rt.faces.MeshFinder` does."""

    def track(self, pixels: Pixels, last: Face) -> Face | None:
        """Return a face near where it was in the last frame; None if it is gone."""

    def glance(self, pixels: Pixels) -> list[Points]:
        """Return the boxes [4] of upright faces that are seen at once, roughly."""


Look = npt.NDArray[Any]


@dataclass
class _Person:
    number: int
    face: Face  # as it was seen last, not smoothed
    seconds: float  # when it was seen last
    look: Look
    speed: Points = field(default_factory=lambda: np.zeros(2))  # pixels a second
    smooth: OneEuro = field(default_factory=OneEuro)
    hidden: bool = False
    unseen: int = 0  # glances in a row that did not see it

    def expected(self, seconds: float) -> Face:
        """Return where the face should be now."""
        return Face(self.face.landmarks + self.speed * (seconds - self.seconds), self.face.score)

    def seen(self, face: Face, seconds: float) -> None:
        """Note where the face is now."""
        elapsed = seconds - self.seconds
        if elapsed > 0:
            moved = (face.quad.mean(0) - self.face.quad.mean(0)) / elapsed
            self.speed = MOVE_KEPT * self.speed + (1 - MOVE_KEPT) * moved
        if self.hidden:
            self.smooth = OneEuro()
        self.face, self.seconds, self.hidden = face, seconds, False


class Tracker:
    """Follows the faces of a film.

    Args:
        finder: Finds them; a `TrackingFinder` is much faster.
        select: Follow "all" faces, or the "largest": the one that is largest when a shot begins, until it is
            gone.
        steady: Smooth the landmarks over time.
    """

    def __init__(self, finder: Finder, *, select: Selection = "all", steady: bool = True) -> None:
        self._finder, self._select, self._steady = finder, select, steady
        self._cuts, self._people = Cuts(), list[_Person]()
        self._looks: list[Look] = []  # of all persons of the film, by their numbers
        self._glanced = 0  # frames since the last glance
        self._searched = float("-inf")  # seconds at the last thorough look
        self.shots = 1

    @property
    def persons(self) -> int:
        """How many people were seen so far."""
        return len(self._looks)

    def follow(self, pixels: Pixels, seconds: float) -> list[TrackedFace]:
        """Return the faces of the next frame, RGB [H, W, 3], the largest first when a shot begins."""
        if self._cuts.is_cut(pixels):
            self.shots += 1
            self._people, self._searched = [], float("-inf")
        if isinstance(self._finder, TrackingFinder):
            self._track(self._finder, pixels, seconds)
        else:
            self._match(self._finder.find(pixels), pixels, seconds)
        self._people = [
            person
            for person in self._people
            if not person.hidden or seconds - person.seconds <= HIDDEN_SECONDS
        ]
        visible = [person for person in self._people if not person.hidden]
        if self._select == "largest":
            visible = visible[:1]
        return [
            TrackedFace(
                person.smooth(person.face, seconds) if self._steady else person.face,
                person.number,
                shot=self.shots,
            )
            for person in visible
        ]

    def _track(self, finder: TrackingFinder, pixels: Pixels, seconds: float) -> None:
        """Follow the known faces with the mesh, and look for new ones now and then."""
        visible = [person for person in self._people if not person.hidden]
        found = [_track_in_region(finder, pixels, person.expected(seconds)) for person in visible]
        _without_twins(visible, found, pixels)
        for person, face in zip(visible, found, strict=True):
            if face is None:
                person.hidden = True
            else:
                person.seen(face, seconds)

        # A glance is much cheaper than a thorough look, which follows only when it sees somebody else.
        self._glanced += 1
        anybody = any(not person.hidden for person in self._people)
        lost = any(person.hidden for person in self._people)
        if anybody and not lost and self._glanced < GLANCE_FRAMES:
            return
        boxes = finder.glance(pixels)
        if self._glanced >= GLANCE_FRAMES:
            self._glanced = 0
            self._forget_ghosts(boxes)
            self._refresh_looks(pixels)
        known = [person.face.box for person in self._people if not person.hidden]
        somebody_new = any(all(_overlap(box, other) < SAME_FACE / 2 for other in known) for box in boxes)
        overdue = not anybody and seconds - self._searched >= FIND_SECONDS
        if somebody_new or overdue:
            self._searched = seconds
            self._match(finder.find(pixels), pixels, seconds, keep=True)

    def _match(self, found: list[Face], pixels: Pixels, seconds: float, *, keep: bool = False) -> None:
        """Give each face that was found to the person whose it is.

        Args:
            found: The faces of this frame, the largest first.
            pixels: The frame.
            seconds: Its time.
            keep: Whether people whom the mesh sees stay where they are; otherwise they are matched too.
        """
        free = [person for person in self._people if not (keep and not person.hidden)]
        taken = [person.face for person in self._people if person not in free]
        faces = [
            face for face in found if all(_overlap(face.box, other.box) < SAME_FACE / 2 for other in taken)
        ]
        looks = [_look(pixels, face) for face in faces]
        # The nearest pairs first; looks decide between two that are both near.
        pairs = sorted(
            (
                (distance + LOOKS_WEIGH * _difference(person.look, looks[number]), number, person)
                for number, face in enumerate(faces)
                for person in free
                if (distance := _distance(person, face, seconds)) is not None
            ),
            key=lambda pair: pair[0],
        )
        given: dict[int, _Person] = {}
        for _, number, person in pairs:
            if number not in given and person not in given.values():
                given[number] = person
        for person in free:
            person.hidden = person not in given.values() or person.hidden
        for number, (face, look) in enumerate(zip(faces, looks, strict=True)):
            if number in given:
                given[number].seen(face, seconds)
            else:
                self._people.append(_Person(self._recognized(look), face, seconds, look))

    def _recognized(self, look: Look) -> int:
        """Return the number of a person who comes into the film, or back into it."""
        present = {person.number for person in self._people}
        known = [
            (difference, number)
            for number, other in enumerate(self._looks)
            if number not in present and (difference := _difference(look, other)) < LOOKS_LIKE
        ]
        if known:
            return min(known)[1]
        self._looks.append(look)
        return len(self._looks) - 1

    def _refresh_looks(self, pixels: Pixels) -> None:
        """Remember how people look who are not hidden by others."""
        visible = [person for person in self._people if not person.hidden]
        for person in visible:
            others = [other for other in visible if other is not person]
            if all(_overlap(person.face.box, other.face.box) == 0 for other in others):
                person.look = (person.look + _look(pixels, person.face)) / 2
                self._looks[person.number] = person.look

    def _forget_ghosts(self, boxes: list[Points]) -> None:
        """Forget faces that the mesh alone goes on seeing."""
        for person in self._people:
            seen = any(_overlap(person.face.box, box) > SAME_FACE / 2 for box in boxes)
            person.unseen = 0 if seen or person.hidden else person.unseen + 1
        self._people = [person for person in self._people if person.unseen < UNSEEN_GLANCES]


def _track_in_region(finder: TrackingFinder, pixels: Pixels, face: Face) -> Face | None:
    """Let the mesh look at the part of the frame that it needs: all of a large frame would be copied."""
    center, half = (face.box[:2] + face.box[2:]) / 2, REGION * float((face.box[2:] - face.box[:2]).max())
    low = np.maximum(np.floor(center - half), 0).astype(int)
    high = np.minimum(np.ceil(center + half), pixels.shape[1::-1]).astype(int)
    if (high - low < 2).any():
        return None
    region = np.ascontiguousarray(pixels[low[1] : high[1], low[0] : high[0]])
    found = finder.track(region, Face(face.landmarks - low, face.score))
    if found is None or np.hypot(*(found.quad.mean(0) + low - face.quad.mean(0))) > JUMP * face.side:
        return None
    return Face(found.landmarks + low, found.score)


def _without_twins(people: list[_Person], found: list[Face | None], pixels: Pixels) -> None:
    """Where two people cross, the mesh of the hidden one jumps onto the other: keep the one who looks so."""
    for first in range(len(people)):
        for second in range(first):
            one, other = found[first], found[second]
            if one is None or other is None or _overlap(one.box, other.box) < SAME_FACE:
                continue
            unlike_one = _difference(people[first].look, _look(pixels, one))
            unlike_other = _difference(people[second].look, _look(pixels, other))
            found[first if unlike_one > unlike_other else second] = None


def _look(pixels: Pixels, face: Face) -> Look:
    """Return how a face looks: the middle of its aligned crop, tiny."""
    region, moved, _ = region_of(pixels, face)
    tiny = np.asarray(crop(region, moved, LOOK_SIDE), np.float32) / 255
    border = LOOK_SIDE // 6
    return tiny[border:-border, border:-border]


def _difference(one: Look, other: Look) -> float:
    return float(np.abs(one - other).mean())


def _distance(person: _Person, face: Face, seconds: float) -> float | None:
    """Return how far a face is from where a person should be, in sides; None if it is another one."""
    expected = person.expected(seconds)
    ratio = face.side / expected.side
    distance = float(np.hypot(*(face.quad.mean(0) - expected.quad.mean(0)))) / expected.side
    allowed = NEAR + RUNS * (seconds - person.seconds if person.hidden else 0.0)
    return distance if distance <= allowed and 1 / LIKE_SIZE < ratio < LIKE_SIZE else None


def _overlap(box: Points, other: Points) -> float:
    """Return the intersection over union of two boxes [4]."""
    corners = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    common = np.clip(corners, 0, None).prod()
    areas = (box[2:] - box[:2]).prod() + (other[2:] - other[:2]).prod()
    return float(common / max(areas - common, 1e-9))
