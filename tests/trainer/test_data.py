import numpy as np
import pytest
import torch
from PIL import Image

from psp_rt.errors import PspError
from trainer import recipe as recipes
from trainer.data import photos as data
from trainer.data import sketch
from trainer.data.pairs import TrainingSet, draw_sketches


@pytest.fixture
def folder(tmp_path):
    faces = tmp_path / "faces"
    faces.mkdir()
    for number in range(5):
        photo = np.full((96, 80, 3), 150 + 10 * number, np.uint8)
        photo[50 + number : 54 + number, 25:55] = 30
        Image.fromarray(photo).save(faces / f"{number}.png")
    return faces


@pytest.fixture
def pairs(folder, tmp_path):
    photos = data.load_photos(folder, size=32)
    drawings = draw_sketches(photos.paths, size=16, variants=2, cache=tmp_path / "sketches.npz")
    recipe = recipes.default("sketch", ("input_size=32", "loss_size=32", "seed=1"))
    return TrainingSet(recipe=recipe, photos=photos.pixels, drawings=drawings)


def test_unreadable_and_tiny_images_are_left_out_and_listed(folder):
    (folder / "broken.jpg").write_bytes(b"not a picture")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:100])
    (folder / "notes.txt").write_text("no image and not meant as one")
    Image.new("RGB", (20, 200)).save(folder / "tiny.png")
    photos = data.load_photos(folder, size=32)
    assert photos.pixels.shape == (5, 32, 32, 3)
    assert [path.name for path in photos.paths] == [f"{number}.png" for number in range(5)]
    assert set(photos.skipped) == {"broken.jpg", "cut.png", "tiny.png"}
    assert photos.skipped["tiny.png"] == "only 20x200 pixels"


def test_a_folder_without_photos_says_what_was_expected(tmp_path):
    with pytest.raises(PspError, match=r"no image file.*\.jpg.*at least 64 pixels"):
        data.load_photos(tmp_path, size=32)
    with pytest.raises(PspError, match="not a folder"):
        data.load_photos(tmp_path / "absent", size=32)


def test_each_epoch_shows_every_image_once_and_batches_run_over_its_end():
    shown = [
        data.positions_to_images(10, seed=3, start=start, length=4).tolist() for start in range(0, 40, 4)
    ]
    flat = [index for batch in shown for index in batch]
    epochs = [flat[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_a_pair_depends_on_its_place_and_not_on_the_batch_size_or_what_ran_before(pairs):
    whole = pairs.batch(100, 8)
    parts = [pairs.batch(104, 4), pairs.batch(100, 4)]
    for field in ("sources", "targets"):
        joined = torch.cat([getattr(parts[1], field), getattr(parts[0], field)])
        torch.testing.assert_close(getattr(whole, field), joined, rtol=0, atol=0)


def test_a_batch_holds_bytes_of_inputs_and_photos(pairs):
    sources, targets = pairs.batch(0, 6)
    assert sources.shape == (6, 16, 16, 1)
    assert targets.shape == (6, 32, 32, 3)
    assert sources.dtype == targets.dtype == torch.uint8
    assert sources.min() < 230
    assert sources.max() == 255


def test_source_and_target_are_mirrored_together():
    photos = np.zeros((1, 32, 32, 3), np.uint8)
    photos[:, :, :16] = 255
    drawings = np.full((1, 1, 16, 16), 255, np.uint8)
    drawings[..., :8] = 0  # ink on the side where the photo is light
    recipe = recipes.default("sketch", ("input_size=32", "loss_size=32"))
    batch = TrainingSet(recipe=recipe, photos=photos, drawings=drawings).batch(0, 40)
    sources, targets = batch.sources[..., 0].float(), batch.targets[..., 0].float()
    ink_left = sources[:, :, :7].mean(dim=(1, 2)) < sources[:, :, 9:].mean(dim=(1, 2))
    light_left = targets[:, :, 0].mean(dim=1) > 127
    assert (ink_left == light_left).all()
    assert 5 < light_left.sum() < 35


def test_sketches_are_drawn_once_and_again_when_a_photo_changes(folder, tmp_path, monkeypatch):
    paths = data.load_photos(folder, size=32).paths
    cache = tmp_path / "sketches.npz"
    first = draw_sketches(paths, size=16, variants=2, cache=cache)
    assert first.shape == (5, 2, 16, 16)

    def refuse(*_, **__):
        raise AssertionError("drew again")

    with monkeypatch.context() as patch:
        patch.setattr(sketch, "draw", refuse)
        np.testing.assert_array_equal(draw_sketches(paths, size=16, variants=2, cache=cache), first)
        Image.new("RGB", (90, 90), "white").save(folder / "2.png")
        with pytest.raises(AssertionError, match="drew again"):
            draw_sketches(paths, size=16, variants=2, cache=cache)


def test_a_damaged_cache_is_drawn_anew(folder, tmp_path):
    paths = data.load_photos(folder, size=32).paths
    cache = tmp_path / "sketches.npz"
    first = draw_sketches(paths, size=16, variants=1, cache=cache)
    cache.write_bytes(cache.read_bytes()[:200])
    np.testing.assert_array_equal(draw_sketches(paths, size=16, variants=1, cache=cache), first)
