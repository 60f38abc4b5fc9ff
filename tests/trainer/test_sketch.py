import numpy as np
import pytest

from trainer.data import sketch
from trainer.data.sketch import Pencil


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
