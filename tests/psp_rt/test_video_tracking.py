"""Faces keep their person from frame to frame, and stay calm."""

from __future__ import annotations

import numpy as np
import pytest

av = pytest.importorskip("av")

from psp_rt.video.steady import Cuts, OneEuro  # noqa: E402
from psp_rt.video.track import Tracker  # noqa: E402
from tests.models.films import (  # noqa: E402
    BLUE,
    RED,
    DiscFinder,
    FollowingDiscFinder,
    discs,
    face_at,
)

GREEN = (30, 160, 30)


def follow(tracker, pictures, *, rate=25.0, begin=0.0):
    """Return the numbers and places of the faces of each frame."""
    found = []
    for number, picture in enumerate(pictures):
        faces = tracker.follow(picture, begin + number / rate)
        found.append({face.person: face.face.quad.mean(0) for face in faces})
    return found


def crossing(frames=50):
    """Yield frames in which a red disc passes in front of a blue one and hides it wholly."""
    for step in range(frames):
        yield discs((120 - 80 * step / frames, 48, BLUE), (40 + 80 * step / frames, 48, RED))


@pytest.mark.parametrize("finder", [DiscFinder, FollowingDiscFinder])
def test_people_who_cross_keep_their_numbers(finder):
    found = follow(Tracker(finder(), steady=False), crossing())
    red, blue = (0, 1) if found[0][0][0] < 80 else (1, 0)
    assert found[0].keys() == found[-1].keys() == {0, 1}
    for step, people in enumerate(found):
        if red in people:
            assert abs(people[red][0] - (40 + 80 * step / 50)) < 12
        if blue in people:
            assert abs(people[blue][0] - (120 - 80 * step / 50)) < 14
    assert any(len(people) == 1 for people in found)  # one is hidden for a while


def test_the_detector_rests_while_the_mesh_sees_the_face():
    finder = FollowingDiscFinder()
    follow(Tracker(finder), (discs((40 + step, 48, RED)) for step in range(50)))
    assert finder.calls == 1
    assert finder.tracks == 49
    assert finder.glances <= 6


def test_a_new_face_is_found_within_ten_frames():
    pictures = [discs((40, 48, RED))] * 5 + [discs((40, 48, RED), (120, 48, BLUE))] * 12
    found = follow(Tracker(FollowingDiscFinder()), pictures)
    assert [len(people) for people in found[:5]] == [1] * 5
    assert len(found[15]) == 2


def test_where_nobody_was_a_face_is_found_at_once():
    found = follow(Tracker(FollowingDiscFinder()), [discs()] * 3 + [discs((40, 48, RED))])
    assert [len(people) for people in found] == [0, 0, 0, 1]


def test_somebody_who_leaves_and_comes_back_soon_has_the_same_number():
    here, gone = discs((60, 48, RED), (130, 30, BLUE)), discs((130, 30, BLUE))
    for finder in (DiscFinder(), FollowingDiscFinder()):
        found = follow(Tracker(finder), [here] * 5 + [gone] * 10 + [here] * 3)
        assert found[0].keys() == found[-1].keys()
        assert len(found[8]) == 1


def test_what_the_mesh_alone_sees_is_forgotten():
    class Imagining(FollowingDiscFinder):
        def track(self, pixels, last):
            return last

    found = follow(Tracker(Imagining()), [discs((60, 48, RED))] * 5 + [discs()] * 40)
    assert found[10]
    assert not found[-1]


def test_after_a_cut_people_are_recognized_by_their_looks():
    red = [discs((40, 48, RED))] * 3
    blue = [255 - discs((100, 48, (220, 220, 30)))] * 3  # other colors everywhere: a cut; its disc is blue
    tracker = Tracker(FollowingDiscFinder())
    found = [list(people) for people in follow(tracker, [*red, *blue, *red, *blue])]
    assert tracker.shots == 4
    assert found == [[0]] * 3 + [[1]] * 3 + [[0]] * 3 + [[1]] * 3
    assert tracker.persons == 2


def test_the_largest_stays_the_same_person_while_the_shot_lasts():
    pictures = [
        discs((40, 48, RED), (120, 48, BLUE), (120, 68 + step, (120,) * 3)) for step in range(20)
    ]  # more and more of the blue one is seen
    found = follow(Tracker(FollowingDiscFinder(), select="largest"), pictures)
    assert [list(people) for people in found] == [[0]] * 20


# Cuts.


def test_another_scene_is_a_cut_and_movement_is_none():
    rng = np.random.default_rng(0)
    scene = np.kron(rng.integers(0, 256, (6, 10, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    other = np.kron(rng.integers(0, 90, (6, 10, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    cuts = Cuts()
    moves = [cuts.is_cut(np.roll(scene, 5 * step, axis=1)) for step in range(10)]
    assert not any(moves)
    assert cuts.is_cut(other)
    assert not cuts.is_cut(other)


def test_a_fade_is_no_cut():
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 256, (48, 80, 3)).astype(float)
    cuts = Cuts()
    assert not any(cuts.is_cut((scene * (1 - step / 50)).astype(np.uint8)) for step in range(50))


# Steadiness.


def jitter(places):
    return float(np.abs(np.diff(np.asarray(places), axis=0)).mean())


def test_a_still_face_is_smoothed_much():
    rng, smooth = np.random.default_rng(0), OneEuro()
    raw, found = [], []
    for step in range(100):
        face = face_at(100, 100, 80)
        shifted = type(face)(face.landmarks + rng.normal(0, 0.8, 2), face.score)
        raw.append(shifted.quad.mean(0))
        found.append(smooth(shifted, step / 25).quad.mean(0))
    assert jitter(found[10:]) < 0.4 * jitter(raw[10:])


def test_a_face_that_moves_is_followed_closely():
    smooth = OneEuro()
    for step in range(50):
        found = smooth(face_at(100 + 6 * step, 100, 80), step / 25)  # nearly two sides a second
    assert abs(found.quad.mean(0)[0] - (100 + 6 * 49)) < 0.02 * 80


def test_the_filter_begins_anew_after_a_pause_of_any_length():
    smooth = OneEuro()
    smooth(face_at(100, 100, 80), 1.0)
    for seconds in (1.0, 0.5):  # equal and falling times
        assert smooth(face_at(300, 100, 80), seconds).quad.mean(0)[0] == pytest.approx(300)
