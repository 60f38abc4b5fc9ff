"""Joint training: it learns, resumes exactly, and loses nothing to a full disk or a divergence."""

import errno
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from export.checkpoints import load as checkpoints
from export.engine import export_engine
from models.recover import recover
from psp_rt import InputError, OutputError, PspError, Translator
from trainer import checkpoint
from trainer import recipe as tasks
from trainer.__main__ import main
from trainer.data import photos as data
from trainer.data.pairs import TrainingSet
from trainer.joint import step, training
from trainer.joint.config import TASKS, JointConfig
from trainer.joint.discriminator import FeatureDiscriminator, discriminator_loss, mean_score
from trainer.joint.run import Run
from trainer.joint.training import Start
from trainer.loop.distributed import Team
from trainer.loop.report import Progress
from trainer.losses import lpips as perceptual
from trainer.losses.lpips import LpipsAlex
from trainer.networks import Generator, mapping

CONFIG = JointConfig(
    size=32,
    channels=(16, 16, 16, 8),  # multiples of 8, see tests/models/tiny_runs.py
    style_dim=16,
    mapping_layers=3,
    discriminator=8,
    input_size=32,
    tasks=("sketch", "inversion"),
    widths=(8, 8, 8, 8),
    depths=(1, 1, 1, 1),
    head_width=8,
    batch=2,
    random=4,
    warmup_images=16,
    adversarial_from=1_000_000,
    images=8,
    report_images=1,  # after each step
)
ALONE = Team(device=torch.device("cpu"))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order, so that equal means equal to the last bit
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def small_lpips(monkeypatch):
    """LPIPS on pictures of 64 instead of 128 pixels, which takes a quarter of the time."""
    monkeypatch.setattr(perceptual, "LOSS_SIZE", 64)


@pytest.fixture(scope="module")
def lpips():
    torch.manual_seed(0)
    drawn = LpipsAlex()
    for head in drawn.heads:
        head.copy_(torch.rand_like(head))
    return drawn.eval()


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """A folder of pictures with something to learn."""
    folder = tmp_path_factory.mktemp("faces")
    rows, columns = np.mgrid[0:72, 0:72] / 72
    for number in range(6):
        disc = (rows - 0.5) ** 2 + (columns - 0.3 - 0.08 * number) ** 2 < 0.05
        picture = np.stack([disc * 200 + 20, columns * 255, disc * 90 + 25 * number], axis=-1)
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def pairs(faces):
    photos = data.load_photos(faces, size=32).pixels
    sketches = np.random.default_rng(0).integers(0, 2, (6, 2, 32, 32)).astype(np.uint8) * 255
    recipes = {task: CONFIG.recipe(task) for task in TASKS}
    sets = {task: TrainingSet(recipe=recipe, photos=photos) for task, recipe in recipes.items()}
    return sets | {"sketch": TrainingSet(recipe=recipes["sketch"], photos=photos, drawings=sketches)}


@pytest.fixture
def train(faces, lpips, monkeypatch):
    """Train into a folder and return the reports, one after each step."""
    monkeypatch.setattr(training, "CALIBRATION_BATCHES", 1)

    def run(output, config=CONFIG, **options):
        return list(
            training.train(config, images=faces, validation=faces, output=output, lpips=lpips, **options)
        )

    return run


def take_steps(run, lpips, pairs, count, team=ALONE):
    run.model.train()
    return [step.train_step(run, lpips, training.next_batches(run, pairs, team), team) for _ in range(count)]


def plain(data, count):
    """Return pairs without variations, as the networks take them."""
    return training.to_pairs(data.plain(range(count)), data, ALONE.device)


def resumed_from(path, config=CONFIG):
    run = Run.start(config)
    run.restore(path)
    return run


def assert_same_state(first, second):
    for name in ("model", "average", "discriminator"):
        pair = [getattr(run, name).state_dict() for run in (first, second)]
        assert pair[0].keys() == pair[1].keys()
        for key, tensor in pair[0].items():
            torch.testing.assert_close(pair[1][key], tensor, rtol=0, atol=0)


def test_one_batch_can_be_learned_by_heart(pairs, lpips):
    run = Run.start(replace(CONFIG, shared=0.0, images=10_000, learning_rate=1e-2))
    run.model.train()
    batches = {task: plain(pairs[task], 2) for task in CONFIG.tasks}
    losses = [step.train_step(run, lpips, batches, ALONE) for _ in range(40)]
    assert losses[-1]["l2"] < 0.1 * losses[0]["l2"]
    assert losses[-1]["lpips"] < 0.2 * losses[0]["lpips"]


@pytest.mark.parametrize("adversarial_from", [1_000_000, 0], ids=["reconstruction", "adversarial"])
def test_resume_is_exact(tmp_path, pairs, lpips, adversarial_from):
    config = replace(CONFIG, images=16, adversarial_from=adversarial_from)
    whole, half = Run.start(config), Run.start(config)
    take_steps(whole, lpips, pairs, 4)
    take_steps(half, lpips, pairs, 2)
    half.save(tmp_path / "latest.pt")
    torch.rand(7)  # what ran in between does not count
    resumed = resumed_from(tmp_path / "latest.pt", config)
    assert resumed.images_seen == 8
    take_steps(resumed, lpips, pairs, 2)
    assert_same_state(whole, resumed)
    with pytest.raises(AssertionError, match="not equal"):
        assert_same_state(whole, half)


def test_a_resumed_run_has_the_rates_of_its_settings_and_not_of_its_checkpoint(tmp_path):
    Run.start(CONFIG).save(tmp_path / "latest.pt")
    slower = replace(CONFIG, learning_rate=1e-4, discriminator_rate=1e-5)
    run = resumed_from(tmp_path / "latest.pt", slower)
    assert [group["full_rate"] for group in run.optimizer.param_groups] == [1e-4, CONFIG.scaled_learning_rate]
    assert run.discriminator_optimizer.param_groups[0]["lr"] == 1e-5


def test_the_average_follows_the_model(pairs, lpips):
    run = Run.start(CONFIG)
    start = run.model.generator.input.input.detach().clone()
    take_steps(run, lpips, pairs, 1)
    moved = run.model.generator.input.input.detach() - start
    followed = run.average.generator.input.input - start
    assert moved.abs().max() > 0
    torch.testing.assert_close(followed, moved)  # early on the memory is short


def test_every_encoder_learns_from_photos_of_its_own(pairs):
    run = Run.start(CONFIG)
    first = training.next_batches(run, pairs, ALONE)
    second = training.next_batches(run, pairs, replace(ALONE, rank=1, size=2))
    shown = [batch.targets for batches in (first, second) for batch in batches.values()]
    expected = data.positions_to_images(6, seed=0, start=0, length=8)
    photos = pairs["inversion"].photos
    for number, targets in enumerate(shown):
        for target, index in zip(targets, expected[2 * number : 2 * number + 2], strict=True):
            photo = torch.from_numpy(photos[index]).permute(2, 0, 1) / 127.5 - 1
            assert torch.equal(target, photo) or torch.equal(target, photo.flip(2))


def test_the_input_of_super_resolution_is_a_blurred_photo_and_of_inversion_the_photo(pairs):
    blurred, same = plain(pairs["super-resolution"], 6), plain(pairs["inversion"], 6)
    assert torch.equal(same.sources, same.targets)
    assert torch.equal(blurred.targets, same.targets)
    roughness = [(x[..., 1:] - x[..., :-1]).square().mean() for x in (blurred.sources, same.sources)]
    assert roughness[0] < 0.8 * roughness[1]


# The discriminator.


def test_the_discriminator_joins_in_at_its_time_and_the_mapping_network_learns(tmp_path, train):
    config = replace(CONFIG, adversarial_from=4, images=12)
    reports = train(tmp_path, config)
    assert ["discriminator_loss" in report for report in reports] == [False, True, True]
    assert "generator_loss" in reports[-1]
    run = resumed_from(tmp_path / "latest.pt", config)
    assert run.mapping_set
    drawn = Run.start(config)
    set_once = [run.model.generator.style[1].weight, drawn.model.generator.style[1].weight]
    assert not torch.allclose(*set_once)


def test_the_discriminator_learns_to_tell_photos_from_pictures(pairs, lpips):
    run = Run.start(replace(CONFIG, adversarial_from=0, images=10_000))
    run.config = replace(run.config, adversarial=0.0)  # the pictures stay easy to tell
    training.fit_discriminator(run, pairs, lpips)
    reports = take_steps(run, lpips, pairs, 40)
    assert reports[-1]["real_score"] > reports[-1]["fake_score"] + 1
    assert reports[-1]["discriminator_loss"] < reports[0]["discriminator_loss"]


def test_the_generator_follows_the_discriminator(pairs, lpips):
    """With no other loss, pictures come to score higher under a discriminator that stands still."""
    config = replace(CONFIG, adversarial_from=0, l2=0.0, lpips=0.0, adversarial=1.0)
    run = Run.start(replace(config, images=10_000, discriminator_rate=0.0))
    losses = [float(report["generator_loss"]) for report in take_steps(run, lpips, pairs, 30)]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    before = dict(Run.start(run.config).discriminator.named_parameters())
    for name, value in run.discriminator.named_parameters():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_the_score_has_gradients_for_the_pictures_alone(pairs, lpips):
    run = Run.start(CONFIG)
    pictures = torch.rand(2, 3, 32, 32).requires_grad_(True)
    maps, _ = step.feature_maps(run, lpips, pictures, pictures.detach())
    step.discriminator_score(run, maps).backward()
    assert pictures.grad is not None
    assert pictures.grad.abs().max() > 0
    assert all(value.grad is None for value in run.discriminator.parameters())
    assert all(value.requires_grad for value in run.discriminator.parameters())


def test_a_closer_look_sees_eyes_nose_and_mouth_alone(lpips):
    run = Run.start(replace(CONFIG, closer=0.5))
    photos = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for rows, of_whole, of_closer in ((slice(0, 8), True, False), (slice(14, 18), True, True)):
        pictures = photos.clone()
        pictures[:, :, rows] = 0
        whole, closer = step.maps_of_crops(run, lpips, pictures, photos)
        assert (whole.name, closer.name, closer.weight) == ("lpips", "closer_lpips", 0.5)
        assert (float(whole.lpips_distance(lpips)) > 1e-6) == of_whole
        assert (float(closer.lpips_distance(lpips)) > 1e-6) == of_closer


def test_a_rim_costs_and_another_color_does_not():
    photo = torch.zeros(1, 3, 16, 16)
    rimmed = photo.clone()
    rimmed[:, :, 0] = 0.5
    assert step.border_loss(photo + 0.5, photo) == 0
    assert step.border_loss(rimmed, photo) > 0.01


def test_identity_counts_for_photos_and_not_for_drawings(pairs, lpips):
    class Recorder:
        def similarity(self, made, photos):
            self.photos = photos
            return made.mean(dim=(1, 2, 3))

    recorder, run = Recorder(), Run.start(replace(CONFIG, identity=1.0))
    batches = training.next_batches(run, pairs, ALONE)
    losses = step.train_step(run, lpips, batches, ALONE, recorder)
    torch.testing.assert_close(recorder.photos, batches["inversion"].targets, rtol=0, atol=0)
    assert "identity" in losses


def test_a_closer_look_counts_beside_the_one_at_the_whole(pairs, lpips):
    config = replace(CONFIG, closer=0.5, adversarial_from=0, images=10_000)
    (report,) = take_steps(Run.start(config), lpips, pairs, 1)
    close = report["lpips"] + 0.5 * report["closer_lpips"]
    total = config.l2 * report["l2"] + config.lpips * close + config.adversarial * report["generator_loss"]
    assert report["closer_lpips"] > 0
    torch.testing.assert_close(report["total"], total)
    without = take_steps(Run.start(replace(config, closer=0.0)), lpips, pairs, 1)[0]
    assert "closer_lpips" not in without
    assert float(without["generator_loss"]) != float(report["generator_loss"])


def test_scores_do_not_depend_on_how_large_the_maps_of_photos_are(pairs, lpips):
    photos = lpips.maps(torch.rand(4, 3, 64, 64))
    scores = []
    for factor in (1.0, 50.0):
        torch.manual_seed(0)
        discriminator = FeatureDiscriminator(8).eval()
        maps = [part * factor for part in photos]
        discriminator.measure(maps)
        scores.append(discriminator(maps))
    for first, second in zip(*scores, strict=True):
        torch.testing.assert_close(first, second)


def test_every_map_counts_alike_however_many_places_it_has():
    small, large = torch.full((2, 1, 1, 1), 1.0), torch.full((2, 1, 9, 9), 3.0)
    assert mean_score([small, large]) == 2.0
    assert discriminator_loss([small, large], [-small, -large]) == 0.0  # beyond the hinge
    assert discriminator_loss([small, -large], [-small, -large]) == 2.0


# Rates and rows.


def test_the_rate_rises_and_falls():
    config = replace(CONFIG, images=1000, warmup_images=100, adversarial_from=500, adversarial_speed=0.5)
    rates = [config.rate_at(seen) for seen in range(0, 1000, 50)]
    assert rates[0] == 0.01
    assert rates[2:10] == [1.0] * 8
    assert rates[10:15] == [0.5] * 5
    assert rates[-1] == pytest.approx(0.1)
    assert rates[15:] == sorted(rates[15:], reverse=True)


def test_shared_rows_are_the_mean_from_one_row_on_and_the_others_stay():
    torch.manual_seed(0)
    codes = torch.randn(400, 8, 5)
    shared = step.share_rows(codes, probability=0.3)
    mean = codes.mean(dim=1, keepdim=True)
    changed = (shared != codes).any(dim=2)  # [N, L]
    torch.testing.assert_close(shared, torch.where(changed[:, :, None], mean, codes))
    firsts = [int(rows.int().argmax()) for rows in changed if rows.any()]
    assert all(rows[first:].all() for rows, first in zip(changed[changed.any(dim=1)], firsts, strict=True))
    assert set(firsts) == set(range(8))
    assert 0.2 < len(firsts) / 400 < 0.4
    assert (step.share_rows(codes, probability=0.0) == codes).all()


# What a run leaves behind.


def test_a_run_leaves_checkpoints_a_log_and_sheets_and_ends_when_it_is_done(tmp_path, train):
    output = tmp_path / "deep" / "run"
    reports = train(output)
    assert [report["images_seen"] for report in reports] == [4, 8]
    assert {"l2", "lpips", "total", "sketch_held_out_l2", "inversion_held_out_lpips"} <= reports[0].keys()
    assert len((output / "log.jsonl").read_text().splitlines()) == 2
    assert Image.open(output / "sheet-4.png").width > 64
    assert train(output) == []  # nothing left to do
    assert train(output, replace(CONFIG, images=12))[0]["images_seen"] == 12


def test_the_model_of_each_task_is_exported_as_it_is(tmp_path, train):
    train(tmp_path)
    for task, kind in (("sketch", "gray"), ("inversion", "rgb")):
        export_engine(checkpoints.load(tmp_path / f"{task}.pt"), tmp_path / "a.engine")
        with Translator(tmp_path / "a.engine", device="cpu") as translator:
            assert translator.manifest.task == task
            assert translator.manifest.input.kind == kind
            assert translator.run(np.zeros((32, 32, 3), np.uint8)).shape == (32, 32, 3)


def test_a_run_may_begin_with_the_networks_of_another(tmp_path, train):
    train(tmp_path / "first")
    run = Run.start(replace(CONFIG, seed=1))
    run.take_over(tmp_path / "first" / "sketch.pt")
    found = checkpoint.load(tmp_path / "first" / "sketch.pt").model
    for model in (run.model, run.average):
        torch.testing.assert_close(model.generator.input.input, found.generator.input.input, rtol=0, atol=0)
    with pytest.raises(InputError, match=r"sketch\.pt is for the task sketch; this run trains inv"):
        Run.start(replace(CONFIG, tasks=("inversion", "super-resolution"))).take_over(
            tmp_path / "first" / "sketch.pt"
        )
    with pytest.raises(InputError, match=r"sketch\.pt has other sizes than this run"):
        Run.start(replace(CONFIG, widths=(8, 8, 16, 8))).take_over(tmp_path / "first" / "sketch.pt")


def test_another_task_may_begin_with_an_encoder_that_reads_the_same(tmp_path, train):
    train(tmp_path / "first")
    run = Run.start(replace(CONFIG, tasks=("super-resolution",), batch=4, seed=1))
    assert Start.parse("super-resolution=a=b.pt") == Start(Path("a=b.pt"), "super-resolution")
    assert Start.parse("runs/lr=1/a.pt") == Start(Path("runs/lr=1/a.pt"), None)
    run.take_over(tmp_path / "first" / "inversion.pt", task="super-resolution")
    found = checkpoint.load(tmp_path / "first" / "inversion.pt").model.encoder.state_dict()
    for name, value in run.average.encoders["super-resolution"].state_dict().items():
        torch.testing.assert_close(value, found[name], rtol=0, atol=0)
    with pytest.raises(InputError, match="has other sizes than this run"):  # a photo has three channels
        run.take_over(tmp_path / "first" / "sketch.pt", task="super-resolution")


def test_a_recovered_engine_gives_in_training_what_it_gave_before(tmp_path, train, pairs):
    train(tmp_path / "first")
    export_engine(checkpoints.load(tmp_path / "first" / "inversion.pt"), tmp_path / "a.engine")
    checkpoint.save(tmp_path / "back.pt", recover(tmp_path / "a.engine"))
    config = replace(CONFIG, tasks=("inversion",), batch=4)
    run = Run.start(config)
    training.start_with(run, Start(tmp_path / "back.pt"), pairs)
    sources = plain(pairs["inversion"], len(pairs["inversion"])).sources
    kept = recover(tmp_path / "a.engine").model.encoder
    first, second = run.model.encoders["inversion"].input_layer[:2], kept.input_layer[:2]
    with torch.no_grad():
        torch.testing.assert_close(first.train()(sources), second.eval()(sources), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_default_sizes_suit_any_number_of_tasks(count):
    assert len(JointConfig(tasks=tuple(TASKS)[:count]).tasks) == count


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, train, monkeypatch):
    train(tmp_path)
    before = (tmp_path / "latest.pt").read_bytes()

    def full_disk(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputError, match=r"cannot write .*latest\.pt.*No space left.*unchanged.*to resume"):
        train(tmp_path, replace(CONFIG, images=12))
    assert (tmp_path / "latest.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_a_sheet_or_a_log_that_cannot_be_written_is_a_message(tmp_path, train):
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*log\.jsonl.*Is a directory"):
        train(tmp_path)
    assert checkpoint.read(tmp_path / "latest.pt")["images_seen"] == 4
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write into .*file"):
        train(tmp_path / "file")


def test_a_divergence_stops_with_a_message_and_keeps_the_last_good_state(tmp_path, train, monkeypatch):
    train(tmp_path)
    before = (tmp_path / "latest.pt").read_bytes()
    spoil = torch.optim.Adam.step

    def spoiled(self, *args, **kwargs):
        spoil(self, *args, **kwargs)
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(torch.nan)

    monkeypatch.setattr(torch.optim.Adam, "step", spoiled)
    with pytest.raises(PspError, match=r"no longer a number after 12 images; .*latest\.pt is the last good"):
        train(tmp_path, replace(CONFIG, images=12))  # the loss of that step was still a number
    assert (tmp_path / "latest.pt").read_bytes() == before
    with pytest.raises(PspError, match="no longer a number after 4 images; no state was saved yet"):
        train(tmp_path / "new")


def test_a_stop_saves_and_says_how_to_resume(tmp_path, faces, lpips, monkeypatch):
    monkeypatch.setattr(training, "CALIBRATION_BATCHES", 1)
    before = signal.getsignal(signal.SIGTERM)
    step_once = step.train_step

    def stopped_meanwhile(run, *rest):
        if run.images_seen == 4:
            signal.raise_signal(signal.SIGTERM)
        return step_once(run, *rest)

    monkeypatch.setattr(training, "train_step", stopped_meanwhile)
    measured = []
    monkeypatch.setattr(training, "evaluate", lambda *_: measured.append("sketch or inversion") or {})
    options = {"images": faces, "validation": faces, "output": tmp_path, "lpips": lpips}
    config = replace(CONFIG, images=16, report_images=100)
    with pytest.raises(
        PspError, match=r"stopped after 8 images; .*everything is saved in .*latest\.pt\. Run"
    ):
        list(training.train(config, **options))
    assert signal.getsignal(signal.SIGTERM) == before
    assert measured == []  # torchrun kills 30 s after the signal
    assert checkpoint.read(tmp_path / "latest.pt")["images_seen"] == 8
    reports = list(training.train(config, **options))
    assert [report["images_seen"] for report in reports] == [16]
    assert len(measured) == 2


def test_the_files_say_how_their_inputs_were_made(tmp_path):
    config = replace(CONFIG, tasks=("sketch", "super-resolution"))
    Run.start(config).save_models(tmp_path)
    recipes = {
        task: tasks.parse(checkpoint.load(tmp_path / f"{task}.pt").training["recipe"], name=task)
        for task in config.tasks
    }
    assert [recipe.source for recipe in recipes.values()] == ["sketch", "low-resolution"]
    assert recipes["super-resolution"].factors == (2, 4, 8)
    assert recipes["sketch"].encoder_config(config.generator) == config.encoder("sketch")


@pytest.mark.parametrize(
    "change",
    [
        {"widths": (8, 8, 16, 8)},
        {"depths": (1, 2, 1, 1)},
        {"mapping_layers": 2},
        {"discriminator": 12},
    ],
    ids=["width", "depth", "mapping", "discriminator"],
)
def test_the_folder_of_a_run_of_other_sizes_is_refused(tmp_path, change):
    Run.start(CONFIG).save(tmp_path / "latest.pt")
    with pytest.raises(
        InputError, match=r"latest\.pt belongs to a run of other sizes; choose another output"
    ):
        resumed_from(tmp_path / "latest.pt", replace(CONFIG, **change))


@pytest.mark.parametrize("others", [("sketch", "super-resolution"), ("inversion", "sketch")])
def test_the_folder_of_a_run_of_other_tasks_is_refused(tmp_path, others):
    Run.start(CONFIG).save(tmp_path / "latest.pt")
    with pytest.raises(InputError, match=r"belongs to a run of the tasks sketch, inversion, in this order"):
        resumed_from(tmp_path / "latest.pt", replace(CONFIG, tasks=others))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch is 0, expected at least 1"),
        ({"warmup_images": 0}, "warmup_images is 0, expected at least 1"),
        ({"widths": (24,)}, r"widths are \[24\], expected four numbers from 1 up"),
        ({"depths": (1, 0, 1, 1)}, r"depths are \[1, 0, 1, 1\], expected four"),
        ({"input_size": 50}, "input_size is 50, expected a multiple of 16"),
    ],
)
def test_settings_that_cannot_train_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(CONFIG, **change)


class Followers(Team):
    """One of two processes that are not really there: notes who waits and what is shared."""

    def wait(self):
        EVENTS.append("wait")

    def share(self, tensors):
        EVENTS.append(len(list(tensors)))


EVENTS: list = []


@pytest.mark.parametrize(("rank", "order"), [(0, ["read", "read", "wait"]), (1, ["wait", "read", "read"])])
def test_the_leader_draws_the_sketches_before_the_others_read_them(tmp_path, monkeypatch, rank, order):
    EVENTS.clear()
    monkeypatch.setattr(training, "load_sets", lambda *_, **__: EVENTS.append("read"))
    team = Followers(device=torch.device("cpu"), rank=rank, size=2)
    training.load_all(CONFIG, tmp_path, tmp_path, tmp_path / "run", team, Progress(silent=True))
    assert order == EVENTS


def test_all_processes_begin_with_one_mapping_network(pairs):
    EVENTS.clear()
    run = Run.start(CONFIG)
    training.start_mapping(run, pairs, Followers(device=torch.device("cpu"), size=2))
    assert [len(list(run.model.generator.style.parameters()))] == EVENTS
    assert EVENTS[0] > 0


def test_the_folder_of_another_kind_of_training_is_refused(tmp_path):
    Run.start(CONFIG).save_models(tmp_path)
    with pytest.raises(InputError, match="was not made by joint training; choose another output folder"):
        resumed_from(tmp_path / "sketch.pt")


def test_a_damaged_checkpoint_is_a_message(tmp_path):
    path = tmp_path / "latest.pt"
    Run.start(CONFIG).save(tmp_path / "latest.pt")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"latest\.pt cannot be read as a checkpoint"):
        resumed_from(path, CONFIG)
    with pytest.raises(InputError, match="does not exist"):
        checkpoint.load(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("encoder_config", {"input_height": 60}, "multiple of 16"),
        ("encoder_config", {"kind": "transformer"}, "transformer"),
        ("encoder_config", {"surplus": 1}, "surplus"),
        ("generator_config", {"channels": (16, 16)}, "convs"),
        ("encoder_config", {"depths": [10**8, 1, 1, 1]}, "depths is .*expected at most 256"),  # it would fill
        ("encoder_config", {"head_width": 8000}, "its sizes are those of .* and it holds"),  # the memory
        ("generator_config", {"channels": (16,) * 20}, "its sizes are those of .* and it holds"),
    ],
)
def test_a_checkpoint_of_impossible_sizes_is_a_message(tmp_path, field, value, reason):
    Run.start(CONFIG).save_models(tmp_path)
    content = torch.load(tmp_path / "sketch.pt", weights_only=True)
    content[field] |= value
    torch.save(content, tmp_path / "sketch.pt")
    with pytest.raises(InputError, match=f"damaged or was made by another version: (.|\n)*{reason}"):
        checkpoint.load(tmp_path / "sketch.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ("sketch", "cooking")}, r"the tasks are .*cooking.*; expected one or more of sketch, inv"),
    ],
)
def test_impossible_settings_are_a_message(change, message):
    with pytest.raises(InputError, match=message):
        replace(CONFIG, **change)


# Random styles.


@pytest.mark.parametrize("layers", [2, 3, 4, 8])
@pytest.mark.parametrize("photos", [400, 10], ids=["many photos", "fewer photos than dimensions"])
def test_mapped_styles_have_the_mean_and_the_covariance_of_the_given_ones(layers, photos):
    torch.manual_seed(0)
    styles = torch.randn(photos, 16) @ torch.randn(16, 16) + 3 * torch.randn(16)
    generator = Generator(replace(CONFIG, mapping_layers=layers).generator)
    assert mapping.set_mapping(generator, styles) < 1e-4
    drawn = generator.mapping(torch.randn(50_000, 16)).detach()
    wanted, found = styles.T.cov(), drawn.T.cov()
    assert (drawn.mean(dim=0) - styles.mean(dim=0)).abs().max() < 0.05 * styles.std(dim=0).max()
    assert (found - wanted).norm() < 0.05 * wanted.norm()


def test_too_few_mapping_layers_are_refused_before_any_training(tmp_path, train):
    config = replace(CONFIG, mapping_layers=1)
    with pytest.raises(InputError, match=r"has 1 mapping layers; .* choose mapping_layers=2 or more"):
        train(tmp_path, config)


def test_random_styles_of_what_is_handed_on_are_like_those_of_the_photos(tmp_path, train, pairs):
    train(tmp_path, replace(CONFIG, adversarial_from=4))  # whatever the discriminator taught
    model = checkpoint.load(tmp_path / "inversion.pt").model.eval()
    photos = plain(pairs["inversion"], 6).sources
    with torch.no_grad():
        styles = model.encoder(photos).mean(dim=1)
        drawn = model.generator.mapping(torch.randn(200, 16))
    distance = ((drawn - styles.mean(dim=0)) / styles.std(dim=0)).square().mean().sqrt()
    assert 0.5 < distance < 1.5


# The command.


def test_the_command_trains_and_reports_and_fails_with_a_message(tmp_path, faces, lpips, monkeypatch):
    monkeypatch.setattr(LpipsAlex, "load", lambda **_: lpips)
    monkeypatch.setattr(training, "CALIBRATION_BATCHES", 1)
    options = {"--images": faces, "--validation": faces, "--output": tmp_path / "run"}
    options |= dict.fromkeys(("--lpips-features", "--lpips-heads"), faces / "0.png")
    arguments = ["joint", *(str(part) for option in options.items() for part in option)]
    arguments += ["--task", "sketch", "--task", "inversion"]
    sizes = ("size=32", "channels=[16, 16, 16, 8]", "style_dim=16", "mapping_layers=3", "input_size=32")
    sizes += ("widths=[8, 8, 8, 8]", "depths=[1, 1, 1, 1]", "head_width=8")
    small = (*sizes, "images=8", "batch=2", "adversarial_from=4", "adversarial=0.02")
    arguments += [part for change in small for part in ("--set", change)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert '"images_seen": 8' in done.output
    unknown = CliRunner().invoke(main, [*arguments, "--set", "adversary=1"])
    assert "--set has the unknown setting adversary; did you mean adversarial?" in unknown.output
    (tmp_path / "run" / "latest.pt").write_bytes(b"something else")
    failed = CliRunner().invoke(main, arguments)
    assert failed.exit_code == 1
    assert "latest.pt cannot be read as a checkpoint" in failed.output
    assert isinstance(failed.exception, SystemExit)


def test_a_dry_run_of_the_command_shows_settings_and_what_is_still_to_be_named(faces):
    asked = ["joint", "--images", str(faces)]
    asked += [part for change in ("size=128", "head_width=50", "batch=4") for part in ("--set", change)]
    settings = json.loads(CliRunner().invoke(main, [*asked, "--dry-run"]).output)
    assert (settings["generator_size"], settings["settings"]["batch"]) == (128, 4)
    assert 1.5e6 < settings["encoder_parameters"]["sketch"] < settings["generator_parameters"]
    assert set(settings["needs"]) == {"--validation", "--lpips-features", "--lpips-heads", "--output"}
    assert "https://" in settings["needs"]["--lpips-features"]
    refused = CliRunner().invoke(main, asked)
    assert "missing: --validation (a folder of portraits of others to measure on)" in refused.output
