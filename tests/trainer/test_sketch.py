import numpy as np
import pytest

from trainer.data import sketch
from trainer.data.sketch import Pencil

SHIFTS = [(3, 0), (-3, 0), (0, 3), (0, -3)]


def photo_of_a_mouth(size=160):
    photo = np.full((size, size, 3), 180, np.uint8)
    photo[95:100, 55:105] = 60
    return photo


def rng(seed=0):
    return np.random.default_rng(seed)


def test_a_dark_stroke_becomes_a_dark_line_on_white_paper():
    drawing = sketch.draw(photo_of_a_mouth(), rng(), pencil=Pencil())
    assert drawing.shape == (160, 160)
    assert drawing.dtype == np.uint8
    assert drawing[97, 60:100].max() < 60
    assert drawing[:80].min() == 255
    assert drawing[115:].min() == 255


def test_an_empty_photo_gives_empty_paper():
    drawing = sketch.draw(np.full((128, 128, 3), 90, np.uint8), rng())
    assert drawing.min() == 255


def test_specks_are_left_out():
    photo = photo_of_a_mouth()
    without = sketch.draw(photo, rng(), pencil=Pencil())
    photo[50:53, 80:83] = 60
    np.testing.assert_array_equal(sketch.draw(photo, rng(), pencil=Pencil())[40:65], without[40:65])


def test_the_same_seed_draws_the_same_and_another_seed_does_not():
    photo = photo_of_a_mouth()
    np.testing.assert_array_equal(sketch.draw(photo, rng(3)), sketch.draw(photo, rng(3)))
    assert (sketch.draw(photo, rng(3)) != sketch.draw(photo, rng(4))).any()


@pytest.mark.parametrize("seed", range(4))
def test_every_random_pencil_leaves_most_of_the_paper_white(seed):
    texture = rng(seed).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    drawing = sketch.draw(texture, rng(seed))
    assert (drawing > 250).mean() > 0.6


def portrait(size=160):
    """A dark head with eyes and a mouth on a light ground."""
    y, x = np.mgrid[0 : 1 : size * 1j, 0 : 1 : size * 1j]
    photo = np.full((size, size, 3), 210, np.uint8)
    photo[np.hypot((x - 0.5) / 0.3, (y - 0.5) / 0.4) < 1] = (120, 100, 90)
    for left, top, wide, tall in ((0.36, 0.45, 0.1, 0.03), (0.54, 0.45, 0.1, 0.03), (0.4, 0.7, 0.2, 0.03)):
        photo[(abs(x - left - wide / 2) < wide / 2) & (abs(y - top - tall / 2) < tall / 2)] = 30
    return photo


@pytest.mark.parametrize("hand", sketch.HANDS, ids=lambda hand: hand.__name__)
def test_every_hand_leaves_ink_and_white_paper(hand):
    drawing = hand(portrait(), rng(1))
    assert (drawing.shape, drawing.dtype) == ((160, 160), np.uint8)
    assert (drawing < 160).mean() > 0.005
    assert (drawing[:20] > 250).mean() > 0.9


def test_a_marker_is_broader_than_a_fine_liner():
    def breadth(hand):
        """Return the share of ink that is farther than 3 pixels from paper."""
        inked = [hand(portrait(), rng(seed)) < 128 for seed in range(4)]
        cores = [np.logical_and.reduce([np.roll(ink, shift, (0, 1)) for shift in SHIFTS]) for ink in inked]
        return sum(core.sum() for core in cores) / sum(ink.sum() for ink in inked)

    assert breadth(sketch.marker) > 2 * breadth(sketch.fine_liner)


def test_what_is_scanned_is_as_clean_as_what_the_model_will_get():
    sheet = np.full((128, 128), 255, np.uint8)
    sheet[40:90, 60:64] = 0
    for seed in range(4):
        found = sketch.scanned(sheet, rng(seed))
        assert np.median(found) == 255
        assert found[45:85, 61:63].max() < 60
