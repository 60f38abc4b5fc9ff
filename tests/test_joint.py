"""Joint training: it learns, resumes exactly, and loses nothing to a full disk or a divergence."""

import errno
import os
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from export import checkpoints
from export.engine import export_engine
from psp_rt import InputError, OutputError, PspError, Translator
from tests import tiny_models
from tests.tiny_models import GENERATOR
from trainer import checkpoint, data, joint, mapping
from trainer.__main__ import main
from trainer.losses.lpips import LpipsAlex
from trainer.networks import Encoder, Generator, GeneratorConfig, Translation
from trainer.team import Team

CONFIG = joint.JointConfig(
    generator=GeneratorConfig(channels=(16, 16, 12, 8), style_dim=16, mapping_layers=3),  # 32 pixels
    widths=(4, 6, 8, 8),
    depths=(1, 1, 1, 1),
    head_width=8,
    batch=4,
    warmup_images=16,
    images=8,
)
ALONE = Team(device=torch.device("cpu"))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order, so that equal means equal to the last bit
    yield
    torch.set_num_threads(threads)


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
    photos = data.load_photos(faces, size=32)
    sketches = np.random.default_rng(0).integers(0, 2, (6, 2, 32, 32)).astype(np.uint8) * 255
    return data.SketchPairs(photos=photos.pixels, sketches=sketches)


@pytest.fixture
def train(faces, lpips, monkeypatch):
    """Train into a folder and return the reports, one after each batch."""
    monkeypatch.setattr(joint, "REPORT_IMAGES", 1)
    monkeypatch.setattr(joint, "calibrate", partial(joint.calibrate, images=64))

    def run(output, config=CONFIG):
        return list(joint.train(config, images=faces, validation=faces, output=output, lpips=lpips))

    return run


def step(run, lpips, pairs, count):
    for _ in range(count):
        networks = (run.model.train().encoder, run.model.generator)
        losses = joint.train_step(run, networks, lpips, pairs.batch(run.images_seen, run.config.batch), ALONE)
    return losses


def assert_same_state(first, second):
    for name in ("model", "average"):
        pair = [getattr(run, name).state_dict() for run in (first, second)]
        assert pair[0].keys() == pair[1].keys()
        for key, tensor in pair[0].items():
            torch.testing.assert_close(pair[1][key], tensor, rtol=0, atol=0)


def test_one_batch_can_be_learned_by_heart(pairs, lpips):
    run = joint.Run.start(replace(CONFIG, shared=0.0, images=10_000, learning_rate=1e-2))
    networks = (run.model.train().encoder, run.model.generator)
    batch = pairs.plain(np.arange(4))
    losses = [joint.train_step(run, networks, lpips, batch, ALONE) for _ in range(40)]
    assert losses[-1]["l2"] < 0.1 * losses[0]["l2"]
    assert losses[-1]["lpips"] < 0.2 * losses[0]["lpips"]


def test_resume_is_exact(tmp_path, pairs, lpips):
    config = replace(CONFIG, images=16)
    whole, half = joint.Run.start(config), joint.Run.start(config)
    step(whole, lpips, pairs, 4)
    step(half, lpips, pairs, 2)
    half.save(tmp_path / "latest.pt")
    torch.rand(7)  # what ran in between does not count
    resumed = joint.Run.resume(config, tmp_path / "latest.pt")
    assert resumed.images_seen == 8
    step(resumed, lpips, pairs, 2)
    assert_same_state(whole, resumed)
    with pytest.raises(AssertionError, match="not equal"):
        assert_same_state(whole, half)


def test_the_average_follows_the_model(pairs, lpips):
    run = joint.Run.start(CONFIG)
    start = run.model.generator.input.input.detach().clone()
    step(run, lpips, pairs, 1)
    moved = run.model.generator.input.input.detach() - start
    followed = run.average.generator.input.input - start
    assert moved.abs().max() > 0
    torch.testing.assert_close(followed, moved)  # early on the memory is short


def test_the_averaged_weights_get_statistics_of_their_own(pairs):
    run = joint.Run.start(CONFIG)
    joint.calibrate(run.average, pairs, start=4, images=128)
    encoder = run.average.encoder
    assert not encoder.training
    batches = [encoder.input_layer[0](pairs.batch(place, 64).sources) for place in (4, 68)]
    norm = encoder.input_layer[1]
    mean = torch.stack([batch.mean(dim=(0, 2, 3)) for batch in batches]).mean(dim=0)
    variance = torch.stack([batch.var(dim=(0, 2, 3)) for batch in batches]).mean(dim=0)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    assert norm.momentum == 0.1  # as before


def test_the_rate_rises_and_falls():
    config = replace(CONFIG, images=1000, warmup_images=100)
    rates = [config.rate_at(seen) for seen in range(0, 1000, 50)]
    assert rates[0] == 0.01
    assert rates[2:15] == [1.0] * 13
    assert rates[-1] == pytest.approx(0.2)
    assert rates[15:] == sorted(rates[15:], reverse=True)


def test_shared_rows_are_the_mean_from_one_row_on_and_the_others_stay():
    torch.manual_seed(0)
    codes = torch.randn(400, 8, 5)
    shared = joint.share_rows(codes, probability=0.3)
    mean = codes.mean(dim=1, keepdim=True)
    changed = (shared != codes).any(dim=2)  # [N, L]
    torch.testing.assert_close(shared, torch.where(changed[:, :, None], mean, codes))
    firsts = [int(rows.int().argmax()) for rows in changed if rows.any()]
    assert all(rows[first:].all() for rows, first in zip(changed[changed.any(dim=1)], firsts, strict=True))
    assert set(firsts) == set(range(8))
    assert 0.2 < len(firsts) / 400 < 0.4
    assert (joint.share_rows(codes, probability=0.0) == codes).all()


# What a run leaves behind.


def test_a_run_leaves_a_checkpoint_a_log_and_sheets_and_ends_when_it_is_done(tmp_path, train):
    output = tmp_path / "deep" / "run"
    reports = train(output)
    assert [report["images_seen"] for report in reports] == [4, 8]
    assert {"l2", "lpips", "total", "held_out_l2", "held_out_lpips"} <= reports[0].keys()
    assert reports[-1]["mapping_error"] < 0.01
    assert len((output / "log.jsonl").read_text().splitlines()) == 2
    assert Image.open(output / "sheet-0.png").width > 64
    assert train(output) == []  # nothing left to do
    assert train(output, replace(CONFIG, images=12))[0]["images_seen"] == 12


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, train, monkeypatch):
    train(tmp_path)
    before = (tmp_path / "latest.pt").read_bytes()

    def full_disk(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputError, match=r"cannot write .*latest\.pt.*No space left.*untouched.*to resume"):
        train(tmp_path, replace(CONFIG, images=12))
    assert (tmp_path / "latest.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_a_sheet_or_a_log_that_cannot_be_written_is_a_message(tmp_path, train):
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"cannot write into .*Is a directory; the last checkpoint in it"):
        train(tmp_path)
    assert checkpoint.load(tmp_path / "latest.pt").training["joint"]["images_seen"] == 4
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
    monkeypatch.setattr(joint, "REPORT_IMAGES", 100)
    with pytest.raises(PspError, match=r"no longer a number after 16 images; .*latest\.pt is the last good"):
        train(tmp_path, replace(CONFIG, images=20))
    assert (tmp_path / "latest.pt").read_bytes() == before
    monkeypatch.setattr(joint, "REPORT_IMAGES", 1)
    with pytest.raises(PspError, match="no longer a number after 4 images; nothing was saved before"):
        train(tmp_path / "new")


@pytest.mark.parametrize(
    "change",
    [
        {"widths": (6, 6, 8, 8)},
        {"depths": (1, 2, 1, 1)},
        {"generator": replace(CONFIG.generator, mapping_layers=2)},
    ],
    ids=["width", "depth", "mapping"],
)
def test_the_folder_of_a_run_of_other_sizes_is_refused(tmp_path, change):
    joint.Run.start(CONFIG).save(tmp_path / "latest.pt")
    with pytest.raises(
        InputError, match=r"latest\.pt belongs to a run of other sizes; choose another output"
    ):
        joint.Run.resume(replace(CONFIG, **change), tmp_path / "latest.pt")


def test_the_folder_of_another_kind_of_training_is_refused(tmp_path):
    run = joint.Run.start(CONFIG)
    content = checkpoint.Checkpoint(task="sketch", input_kind="gray", labels=None, model=run.model)
    checkpoint.save(tmp_path / "latest.pt", content)
    with pytest.raises(InputError, match="was not made by joint training; choose another output folder"):
        joint.Run.resume(CONFIG, tmp_path / "latest.pt")


def test_a_damaged_checkpoint_is_a_message(tmp_path):
    path = tmp_path / "latest.pt"
    joint.Run.start(CONFIG).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"latest\.pt cannot be read as a checkpoint"):
        joint.Run.resume(CONFIG, path)
    with pytest.raises(InputError, match="does not exist"):
        checkpoint.load(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("encoder_config", {"input_height": 60}, "multiple of 16"),
        ("encoder_config", {"kind": "transformer"}, "transformer"),
        ("encoder_config", {"surplus": 1}, "surplus"),
        ("generator_config", {"channels": (16, 16)}, "convs"),
    ],
)
def test_a_checkpoint_of_impossible_sizes_is_a_message(tmp_path, field, value, reason):
    path = tmp_path / "latest.pt"
    joint.Run.start(CONFIG).save(path)
    content = torch.load(path, weights_only=True)
    content[field] |= value
    torch.save(content, path)
    with pytest.raises(InputError, match=f"damaged or was made by another version: (.|\n)*{reason}"):
        checkpoint.load(path)


# Random styles.


@pytest.mark.parametrize("layers", [2, 3, 4, 8])
@pytest.mark.parametrize("photos", [400, 10], ids=["many photos", "fewer photos than dimensions"])
def test_mapped_styles_have_the_mean_and_the_covariance_of_the_given_ones(layers, photos):
    torch.manual_seed(0)
    styles = torch.randn(photos, 16) @ torch.randn(16, 16) + 3 * torch.randn(16)
    generator = Generator(replace(CONFIG.generator, mapping_layers=layers))
    assert mapping.set_mapping(generator, styles) < 1e-4
    drawn = generator.mapping(torch.randn(50_000, 16)).detach()
    wanted, found = styles.T.cov(), drawn.T.cov()
    assert (drawn.mean(dim=0) - styles.mean(dim=0)).abs().max() < 0.05 * styles.std(dim=0).max()
    assert (found - wanted).norm() < 0.05 * wanted.norm()


def test_too_few_mapping_layers_are_refused_before_any_training():
    config = replace(CONFIG, generator=replace(CONFIG.generator, mapping_layers=1))
    with pytest.raises(InputError, match=r"has 1 mapping layers; .* choose mapping_layers=2 or more"):
        joint.Run.start(config)


def test_random_styles_of_an_exported_model_are_like_its_photos(tmp_path, pairs):
    torch.manual_seed(0)
    encoder = tiny_models.encoder_config(input_channels=1, input_height=32, input_width=32)
    model = Translation(Encoder.create(encoder), Generator(GENERATOR), None).eval()
    assert joint.fit_mapping(model, pairs) < 1e-3
    content = checkpoint.Checkpoint(task="sketch", input_kind="gray", labels=None, model=model)
    checkpoint.save(tmp_path / "a.pt", content)
    export_engine(checkpoints.load(tmp_path / "a.pt"), tmp_path / "a.engine")
    with Translator(tmp_path / "a.engine", device="cpu") as translator:
        styles = translator.encode(list(pairs.sketches[:, 0])).mean(axis=1)
        samples = np.stack([translator.sample(seed) for seed in range(200)])
        pictures = translator.generate(samples[:4])
    assert (samples == samples[:, :1]).all()  # one style for every row
    spread = styles.std(axis=0, ddof=1)
    distance = np.abs(samples[:, 0] - styles.mean(axis=0)) / spread
    assert distance.max() < 6
    assert 0.5 < np.sqrt((distance**2).mean()) < 1.5
    assert (pictures[0] != pictures[1]).any()


# The command.


def test_the_command_trains_and_reports_and_fails_with_a_message(tmp_path, faces, lpips, monkeypatch):
    monkeypatch.setattr(LpipsAlex, "load", lambda **_: lpips)
    monkeypatch.setattr(joint, "calibrate", partial(joint.calibrate, images=64))
    monkeypatch.setattr(joint, "JointConfig", lambda images: replace(CONFIG, images=images))
    options = {"--images": faces, "--validation": faces, "--output": tmp_path / "run", "--count": 8}
    options |= dict.fromkeys(("--lpips-features", "--lpips-heads"), faces / "0.png")
    arguments = ["joint", *(str(part) for option in options.items() for part in option)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert '"images_seen": 8' in done.output
    (tmp_path / "run" / "latest.pt").write_bytes(b"something else")
    failed = CliRunner().invoke(main, arguments)
    assert failed.exit_code == 1
    assert "latest.pt cannot be read as a checkpoint" in failed.output
    assert isinstance(failed.exception, SystemExit)
