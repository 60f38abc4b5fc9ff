import threading

import numpy as np
import pytest
import torch
from PIL import Image

from psp_rt.errors import PspError
from trainer import recipe as tasks
from trainer.data import inputs
from trainer.data.pairs import TrainingSet, ahead
from trainer.networks import GeneratorConfig

SMALL = ("input_size=32", "loss_size=32")


@pytest.fixture
def faces(tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    for number in range(5):
        photo = np.full((96, 80, 3), 120 + 10 * number, np.uint8)
        photo[50 + number : 54 + number, 15:40] = 30  # left of the middle
        Image.fromarray(photo).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def labels(tmp_path):
    folder = tmp_path / "labels"
    folder.mkdir()
    for number in range(5):
        ids = np.zeros((96, 80), np.uint8)
        ids[40:, 40:] = number + 6
        Image.fromarray(ids).save(folder / f"{number}.png")
    return folder


def load(task, faces, *changes, pairs=None):
    return TrainingSet.load(tasks.default(task, (*SMALL, *changes)), faces, pairs)


@pytest.mark.parametrize(
    ("task", "kind", "mirror", "weights"),
    [
        ("inversion", "rgb", "together", {"lpips": 0.8, "l2": 1, "identity": 0.1}),
        (
            "frontalization",
            "rgb",
            "apart",
            {
                "lpips": 0.08,
                "l2": 0.001,
                "identity": 1,
                "w_norm": 0.005,
                "inner_lpips": 0.8,
                "inner_l2": 0.01,
            },
        ),
        ("sketch", "gray", "together", {"lpips": 0.8, "l2": 1, "w_norm": 0.005}),
        ("segmentation", "labels", "none", {"lpips": 0.8, "l2": 1, "w_norm": 0.005}),
        ("super-resolution", "rgb", "together", {"lpips": 0.8, "l2": 1, "identity": 0.1, "w_norm": 0.005}),
        ("inpainting", "rgb", "together", {"lpips": 0.8, "l2": 1, "identity": 0.1}),
        ("toonify", "rgb", "together", {"lpips": 0.8, "l2": 1, "identity": 1, "w_norm": 0.025}),
    ],
)
def test_each_task_has_its_official_values(task, kind, mirror, weights):
    recipe = tasks.default(task)
    assert (recipe.task, recipe.kind, recipe.mirror) == (task, kind, mirror)
    assert {name: value for name, value in vars(recipe.losses).items() if value} == weights
    assert (recipe.batch, recipe.learning_rate, recipe.optimizer) == (8, 1e-4, "ranger")
    assert (recipe.input_size, recipe.loss_size, recipe.start_from_average) == (256, 256, True)


def test_every_task_has_a_recipe_file_and_every_file_a_task():
    assert sorted(file.stem for file in tasks.FOLDER.glob("*.toml")) == sorted(tasks.TASKS)


def test_the_official_encoder_comes_out_of_the_official_generator():
    sizes = tasks.default("sketch").encoder_config(GeneratorConfig(channels=(8,) * 9))
    assert (sizes.num_styles, sizes.input_channels, sizes.style_dim) == (18, 1, 512)
    assert (sizes.widths, sizes.depths, sizes.head_width) == ((64, 128, 256, 512), (3, 4, 14, 3), 512)


def test_single_values_can_be_changed():
    changes = ["batch=16", "losses.identity=0", "encoder=naive_w+", "widths=[4, 6, 8, 10]"]
    recipe = tasks.default("inversion", changes)
    assert (recipe.batch, recipe.losses.identity, recipe.losses.l2) == (16, 0.0, 1.0)
    assert (recipe.encoder, recipe.widths) == ("naive_w+", (4, 6, 8, 10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("bach=16", r"unknown setting bach; did you mean batch\?"),
        ("lpips=0", r"unknown setting lpips; did you mean losses.lpips\?"),
        ("zzz=16", r"unknown setting zzz; known are task, .*batch"),
        ("losses.ssim=1", "losses has the unknown setting ssim; known are l2"),
        ("losses.l2=-1", "loss l2 is -1.0, expected 0 or more"),
        ("losses=3", "losses is 3, expected a table of weights"),
        ("batch=many", "batch is 'many', expected int"),
        ("batch=true", "batch is True, expected int"),
        ("batch=0", "batch is 0, expected at least 1"),
        ("parts=3", "batch 8 is not a multiple of parts 3"),
        ("encoder=resnet", "encoder is 'resnet', expected one of 'psp'"),
        ("input_size=100", "input_size is 100, expected a multiple of 16"),
        ("widths=[1, 2]", "widths and depths need four values each"),
        ("learning_rate=nan", "learning_rate is nan, expected a finite number above 0"),
        ("halflife_images=-1", "halflife_images is -1.0, expected a finite number from 0 up"),
        ("seed=-1", r"seed is -1, expected 0 to 2\^63 - 1"),
        ("widths=[-1, 2, 3, 4]", r"widths are \[-1, 2, 3, 4\], expected numbers from 1 to 8192"),
        ("depths=[1, 1, 1, 1000000]", r"depths are .*, expected numbers from 1 to 8192"),
        ("head_width=999999999999999999", "expected 8192 or less"),
        ("input_size=1000000000000", "expected 4096 or less"),
        ("labels=3", "kind is rgb, which has no labels"),
        ("kind=labels", "give it with --set labels=19"),
        ("batch", "expected NAME=VALUE"),
    ],
)
def test_an_impossible_recipe_says_what_would_be_possible(change, message):
    with pytest.raises(PspError, match=message):
        tasks.default("inversion", [change])


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("segmentation", "source=photo", "label maps cannot be made from photos"),
        ("sketch", "kind=rgb", 'sketches have kind "gray"'),
        ("sketch", "source=photo", "kind gray cannot be made by source photo"),
        ("super-resolution", "factors=[]", r"factors are \[\], expected numbers from 1 to 128"),
        ("super-resolution", "factors=[0]", r"factors are \[0\]"),
    ],
)
def test_inputs_that_cannot_be_made_are_refused(task, change, message):
    with pytest.raises(PspError, match=message):
        tasks.default(task, [change])


def test_a_file_that_is_no_recipe_is_refused(tmp_path):
    (tmp_path / "mine.toml").write_text("task = ")
    with pytest.raises(PspError, match=r"mine.toml cannot be read as settings"):
        tasks.read(tmp_path / "mine.toml")
    (tmp_path / "mine.toml").write_text('task = "cats"\nkind = "rgb"\nmirror = "none"')
    with pytest.raises(PspError, match=r"mine.toml has no value for source"):
        tasks.read(tmp_path / "mine.toml")


def test_losses_compare_at_the_generators_size_where_it_is_smaller():
    recipe = tasks.with_sizes(tasks.default("inversion"), GeneratorConfig(channels=(8,) * 5))
    assert recipe.loss_size == 64
    assert tasks.with_sizes(recipe, GeneratorConfig(channels=(8,) * 9)).loss_size == 64


def test_the_input_of_inversion_is_the_target(faces):
    batch = load("inversion", faces).batch(0, 8)
    assert batch.sources.dtype == torch.uint8
    assert torch.equal(batch.sources, batch.targets)


def test_a_photo_that_is_resized_for_the_encoder_stays_the_photo(faces):
    batch = load("inversion", faces, "input_size=64").plain([1])
    assert (batch.sources.shape, batch.targets.shape) == ((1, 64, 64, 3), (1, 32, 32, 3))
    assert batch.sources.float().mean().item() == pytest.approx(batch.targets.float().mean().item(), abs=1)


def test_frontalization_mirrors_source_and_target_independently(faces):
    sources, targets = load("frontalization", faces).batch(0, 64)
    same = (sources == targets).flatten(1).all(dim=1)
    mirrored = (sources == targets.flip(2)).flatten(1).all(dim=1)
    assert (same | mirrored).all()
    assert 16 < same.sum() < 48


def test_segmentation_is_not_mirrored(faces, labels):
    sources, _ = load("segmentation", faces, pairs=labels).batch(0, 32)
    assert (sources[:, :, :12] == 0).all()


def test_lower_resolution_averages_and_keeps_the_size():
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert inputs.lower_resolution(photo, 1) is photo
    spreads = [inputs.lower_resolution(photo, factor).std() for factor in (1, 2, 4, 8, 16)]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] < 0.15 * spreads[0]
    assert inputs.lower_resolution(photo, 16).shape == photo.shape
    assert inputs.lower_resolution(photo, 16).mean() == pytest.approx(photo.mean(), abs=2)


def test_super_resolution_draws_all_its_factors(faces):
    found = load("super-resolution", faces, "mirror=none", "factors=[1, 4, 16]")
    places = range(0, 60)
    sharpness = {
        round(float((batch.sources.float() - batch.targets.float()).abs().mean()), 1)
        for batch in (found.batch(place, 1) for place in places)
    }
    assert 0.0 in sharpness
    assert len(sharpness) > 5  # of five photos, each at two lower resolutions


def test_the_mask_is_a_symmetric_triangle_of_a_quarter_of_the_photo(faces):
    missing = inputs.triangle(64)
    np.testing.assert_array_equal(missing, missing[:, ::-1])
    assert missing.mean() == pytest.approx(0.25, abs=0.02)
    widths = missing.sum(axis=1)
    assert widths[:32].max() == 0
    assert (np.diff(widths[32:]) == 2).all()
    assert widths[-1] == 64
    sources, targets = load("inpainting", faces).batch(0, 4)
    hole = torch.from_numpy(inputs.triangle(32))
    assert (sources[:, hole] == inputs.GRAY).all()
    assert torch.equal(sources[:, ~hole], targets[:, ~hole])


def test_sketches_are_dark_lines_on_white_and_never_the_same_twice(faces):
    found = load("sketch", faces)
    first, again = (found.batch(place, 1).sources for place in (0, 5))
    assert first.shape == (1, 32, 32, 1)
    assert first.float().median() > 200
    sources = found.batch(0, 20).sources
    assert sources.amin(dim=(1, 2, 3)).float().median() < 160
    assert len(torch.unique(sources, dim=0)) == 20
    assert not torch.equal(first, again)


def test_the_network_reads_each_kind_in_its_range(faces, labels):
    for task, pairs, channels, low, high in [
        ("inversion", None, 3, -1, 1),
        ("sketch", None, 1, 0, 1),
        ("segmentation", labels, 19, 0, 1),
    ]:
        found = load(task, faces, pairs=pairs)
        x = inputs.to_network(found.batch(0, 4).sources, found.recipe)
        assert x.shape == (4, channels, 32, 32)
        assert x.min() >= low
        assert x.min() < low + 0.9
        assert x.max() <= high


def test_label_maps_become_one_channel_for_each_label(faces, labels):
    found = load("segmentation", faces, pairs=labels)
    batch = found.plain([0, 4])
    x = inputs.to_network(batch.sources, found.recipe)
    assert (x.sum(dim=1) == 1).all()
    assert torch.equal(x.argmax(dim=1), batch.sources[..., 0].long())
    assert set(batch.sources.unique().tolist()) == {0, 6, 10}  # resizing invents none


def test_palette_pictures_give_their_indices(faces, labels):
    for file in labels.iterdir():
        picture = Image.open(file).convert("L")
        indexed = Image.frombytes("P", picture.size, picture.tobytes())
        indexed.putpalette([255, 0, 0] * 256)
        indexed.save(file)
    batch = load("segmentation", faces, pairs=labels).plain([2])
    assert set(batch.sources.unique().tolist()) == {0, 8}


def test_users_own_pairs_take_the_place_of_derived_inputs(faces, tmp_path):
    drawings = tmp_path / "drawings"
    drawings.mkdir()
    for number in range(5):
        Image.new("L", (90, 90), 50 * number).save(drawings / f"{number}.jpg")
    found = load("sketch", faces, "source=pairs", pairs=drawings)
    assert found.plain([3]).sources.unique().tolist() == [150]


def test_photos_without_a_partner_are_named_and_partners_without_a_photo_too(faces, labels):
    (labels / "3.png").rename(labels / "seven.png")
    with pytest.raises(
        PspError, match=r"1 pictures in .*faces have no partner in .*labels \(3\); the two files"
    ):
        load("segmentation", faces, pairs=labels)
    Image.new("L", (80, 96)).save(labels / "3.png")
    with pytest.raises(PspError, match=r"in .*labels have no partner in .*faces \(seven\)"):
        load("segmentation", faces, pairs=labels)


def test_the_partner_of_a_photo_that_was_left_out_is_left_out_too(faces, labels):
    (faces / "1.png").write_bytes(b"not a picture")
    found = load("segmentation", faces, pairs=labels)
    assert found.skipped == {"1.png": "is not a picture that Pillow can read"}
    assert set(found.plain([1]).sources.unique().tolist()) == {0, 8}  # photo 2's


def test_a_label_out_of_range_names_file_and_label(faces, labels):
    with pytest.raises(PspError, match=r"4.png holds the label 10, but the recipe has 10 .*--set labels=11"):
        load("segmentation", faces, "labels=10", pairs=labels)


def test_pictures_that_are_no_label_maps_or_unreadable_are_named(faces, labels):
    Image.new("RGB", (80, 96)).save(labels / "2.png")
    with pytest.raises(PspError, match=r"2.png cannot be used .*this picture has mode RGB; save the ids"):
        load("segmentation", faces, pairs=labels)
    (labels / "2.png").write_bytes(b"broken")
    with pytest.raises(PspError, match=r"2.png cannot be used \(is not a picture.*fix it, or remove"):
        load("segmentation", faces, pairs=labels)


def test_partners_are_read_as_the_runtime_reads_what_it_translates(faces, tmp_path):
    drawings = tmp_path / "drawings"
    drawings.mkdir()
    for path in faces.glob("*.png"):
        ink = np.zeros((96, 96, 4), np.uint8)  # black everywhere, and transparent
        ink[:, 48:, 3] = 255  # but for the right half
        Image.fromarray(ink).save(drawings / path.name)
    found = load("sketch", faces, "source=pairs", pairs=drawings)
    paper, line = found.plain([0]).sources[0, :, [1, -2], 0].unbind(dim=1)
    assert (paper == 255).all()
    assert (line == 0).all()


def test_pairs_are_asked_for_only_where_they_are_used(faces, labels):
    with pytest.raises(PspError, match="segmentation needs --pairs"):
        load("segmentation", faces)
    with pytest.raises(PspError, match="--set source=pairs, or leave --pairs out"):
        load("inversion", faces, pairs=labels)
    with pytest.raises(PspError, match="absent is not a folder; --pairs names"):
        load("segmentation", faces, pairs=labels / "absent")


@pytest.mark.parametrize("task", ["inversion", "sketch", "super-resolution", "frontalization"])
def test_a_picture_depends_on_its_place_and_not_on_the_batch(task, faces):
    found = load(task, faces)
    whole, parts = found.batch(100, 6), [found.batch(103, 3), found.batch(100, 3)]
    for field in ("sources", "targets"):
        joined = torch.cat([getattr(parts[1], field), getattr(parts[0], field)])
        assert torch.equal(getattr(whole, field), joined)


def test_plain_pictures_are_always_the_same(faces):
    for task in ("sketch", "super-resolution"):
        found = load(task, faces)
        assert torch.equal(found.plain([2, 3]).sources, found.plain([2, 3]).sources)


def test_results_made_ahead_come_in_order_and_no_more_than_asked_for():
    started, lock, before = [], threading.Lock(), set(threading.enumerate())  # of earlier tests

    def make(item):
        with lock:
            started.append(item)
        return item * item

    results = ahead(make, iter(range(100)), threads=2, in_flight=4)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    results.close()
    assert max(started) <= 9
    assert set(threading.enumerate()) <= before


def test_an_error_in_the_background_arrives_at_its_place():
    def make(item):
        return 1 / (2 - item)

    results = ahead(make, iter(range(5)))
    assert [next(results), next(results)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_partners_are_read_in_the_photos_order(faces, labels):
    found = load("segmentation", faces, pairs=labels)
    assert found.partners.max(axis=(1, 2, 3)).tolist() == [6, 7, 8, 9, 10]
