"""Training a StyleGAN2 generator."""

import json
import signal
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import multiprocessing

from export.checkpoints import load as checkpoints
from export.engine import export_engine
from psp_rt import Translator
from psp_rt.errors import DeviceError, InputError, OutputError, PspError
from tests.models import one_of_two
from trainer import checkpoint
from trainer.__main__ import main
from trainer.data.photos import PhotoSet
from trainer.generator import config as configs
from trainer.generator import step
from trainer.generator import training as loop
from trainer.generator.config import GanConfig
from trainer.generator.run import Run, lazy_adam
from trainer.loop import distributed as team
from trainer.loop.distributed import Interrupted
from trainer.networks import Generator

CHANNELS = (8, 8, 8)  # 16 pixels; multiples of 8, see tests/models/tiny_runs.py
ALONE = team.Team(device=torch.device("cpu"))
COLORS = torch.tensor([[230, 40, 40], [40, 40, 230]], dtype=torch.uint8)
TINY = GanConfig(
    size=16,
    channels=CHANNELS,
    style_dim=8,
    mapping_layers=2,
    images=48,
    batch=8,
    r1_interval=2,
    path_interval=2,
    report_images=8,
)
TINY_SETTINGS = ("size=16", "channels=[8, 8, 8]", "style_dim=8", "mapping_layers=2", "batch=8")


@pytest.fixture
def photos():
    """Pictures of two colors."""
    pixels = COLORS.repeat(10, 1)[:, :, None, None].expand(-1, -1, 16, 16).clone()
    pixels[:, :, :3, :5] = 128  # so that a mirrored one differs
    return PhotoSet(pixels=pixels, device=torch.device("cpu"), fingerprint="a")


@pytest.fixture
def folder(tmp_path):
    """A folder of photos."""
    faces = tmp_path / "faces"
    faces.mkdir()
    for number in range(5):
        Image.fromarray(np.full((40, 30, 3), 40 * number, np.uint8)).save(faces / f"{number}.png")
    return faces


def stepped(run, photos, count=1):
    forward = step.Forward.of(run)
    for _ in range(count):
        report = step.train_step(run, forward, photos, ALONE)
    return report


def everything(content):
    """Return all numbers of a checkpoint by name."""
    if isinstance(content, dict):
        return {
            f"{key}.{name}": value
            for key, part in content.items()
            for name, value in everything(part).items()
        }
    if isinstance(content, list | tuple):
        return everything(dict(enumerate(content)))
    return {"": content}


def assert_same_state(first, second):
    first, second = everything(torch.load(first)), everything(torch.load(second))
    assert first.keys() == second.keys()
    different = [
        name
        for name, value in first.items()
        if not (
            torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        )
    ]
    assert different == []


def test_the_gradient_penalty_of_a_linear_discriminator_is_the_square_of_its_weights():
    weight = torch.randn(3, 4, 4)
    pictures = torch.randn(5, 3, 4, 4)
    penalty = step.gradient_penalty(lambda x: (x * weight).sum(dim=(1, 2, 3)), pictures)
    assert penalty.item() == pytest.approx(weight.square().sum().item(), rel=1e-5)


def test_the_gradient_penalty_can_be_learned_from():
    run = Run.start(TINY, device=ALONE.device)
    step.gradient_penalty(run.discriminator, torch.randn(4, 3, 16, 16)).backward()
    with_gradient = [name for name, value in run.discriminator.named_parameters() if value.grad is not None]
    assert {"convs.0.0.weight", "convs.2.conv2.1.weight", "final_linear.1.weight"} <= set(with_gradient)


def test_path_lengths_are_what_finite_differences_say():
    torch.manual_seed(0)
    generator = Generator(TINY.generator).double()
    codes = torch.randn(2, 6, 8, dtype=torch.float64, requires_grad=True)
    directions = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    lengths = step.path_lengths(generator(codes), codes, directions=directions)

    slopes = torch.zeros_like(codes)
    for place in np.ndindex(*codes.shape):
        offset = torch.zeros_like(codes)
        offset[place] = 1e-3  # the demodulation is computed in float32
        with torch.no_grad():
            change = generator(codes + offset) - generator(codes - offset)
        slopes[place] = (change * directions).sum() / 2e-3 / 16
    expected = slopes.square().sum(dim=2).mean(dim=1).sqrt()
    torch.testing.assert_close(lengths, expected, rtol=2e-3, atol=0)


def test_lazy_regularization_counts_as_if_it_came_at_every_step(photos):
    rare = Run.start(replace(TINY, r1_interval=16, path_interval=4), device=ALONE.device)
    often = Run.start(replace(TINY, r1_interval=1, path_interval=1), device=ALONE.device)
    for name, interval, part in (
        ("penalty_loss", 16, lambda run: step.gradient_penalty_step(run, photos, ALONE)),
        ("path_loss", 4, lambda run: step.path_length_step(run, ALONE)),
    ):
        ratio = part(rare)[name] / part(often)[name]
        assert ratio.item() == pytest.approx(interval, rel=1e-4)
    optimizer = lazy_adam(rare.discriminator, 2e-3, interval=16)
    assert optimizer.defaults["lr"] == pytest.approx(2e-3 * 16 / 17)
    assert optimizer.defaults["betas"] == pytest.approx((0, 0.99 ** (16 / 17)))


def test_regularizations_come_at_their_intervals(photos):
    run = Run.start(replace(TINY, r1_interval=3, path_interval=2), device=ALONE.device)
    reports = [stepped(run, photos) for _ in range(6)]
    assert ["gradient_penalty" in report for report in reports] == [True, False, False] * 2
    assert ["path_length" in report for report in reports] == [True, False] * 3
    without = stepped(Run.start(replace(TINY, path_weight=0.0), device=ALONE.device), photos)
    assert "path_length" not in without


def test_mixed_codes_have_one_style_up_to_a_row_and_another_from_there():
    torch.manual_seed(0)
    generator = Generator(TINY.generator)
    codes = step.draw_codes(generator, 400, mixing=0.9)
    changes = (codes[:, 1:] != codes[:, :-1]).any(dim=2).sum(dim=1)  # [N]
    assert set(changes.tolist()) == {0, 1}
    assert (changes == 1).float().mean().item() == pytest.approx(0.9, abs=0.05)
    whole = step.draw_codes(generator, 20, mixing=0)
    assert (whole == whole[:, :1]).all()


def test_augmentation_grows_while_real_pictures_are_recognized(photos):
    run = Run.start(replace(TINY, augment_images=1000), device=ALONE.device)
    run.signs.copy_(torch.tensor([30.0, 32.0]))
    step.adjust_augmentation(run, ALONE)
    assert run.augmentation == pytest.approx(0.032)
    assert run.signs.tolist() == [0, 0]
    run.signs.copy_(torch.tensor([-4.0, 16.0]))
    step.adjust_augmentation(run, ALONE)
    assert run.augmentation == pytest.approx(0.016)


def test_signs_of_real_scores_are_gathered_between_adjustments(photos):
    run = Run.start(TINY, device=ALONE.device)
    stepped(run, photos, 3)
    assert run.signs[1] == 24
    assert abs(run.signs[0]) <= 24
    stepped(run, photos)
    assert run.signs[1] == 0
    unaugmented = Run.start(replace(TINY, augment=False, augment_images=1), device=ALONE.device)
    stepped(unaugmented, photos, 4)
    assert unaugmented.augmentation == 0


def test_a_generator_learns_the_colors_of_its_photos(photos):
    widths = (16, 16, 16)
    settings = replace(
        TINY,
        channels=widths,
        discriminator_channels=widths,
        learning_rate=1e-2,
        r1_weight=0.5,
        r1_interval=4,
        path_weight=0.0,
        halflife_images=100,
    )
    run = Run.start(settings, device=ALONE.device)

    def distance():
        """Return how far the samples are from the nearer of the two colors."""
        torch.manual_seed(5)
        with torch.no_grad():
            samples = run.average(step.draw_codes(run.average, 32, mixing=0)).mean(dim=(2, 3))
        wanted = COLORS / 127.5 - 1
        return torch.cdist(samples, wanted).min(dim=1).values.mean().item()

    before = distance()
    stepped(run, photos, 40)
    assert distance() < 0.5 * before


def test_resume_is_exact_after_an_interruption(photos, tmp_path, monkeypatch):
    settings = replace(TINY, augment_images=100)
    assert len(list(loop.train(settings, photos, team=ALONE, output=tmp_path / "whole"))) == 6

    reports = loop.train(settings, photos, team=ALONE, output=tmp_path / "parts", held_out=photos)
    next(reports)
    monkeypatch.setattr(loop, "overfitting", None)  # it would take longer than torchrun waits before it kills
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"stopped after 16 images.*Run the same command again"):
        list(reports)
    torch.manual_seed(1234)  # whatever ran in between
    monkeypatch.undo()
    list(loop.train(settings, photos, team=ALONE, output=tmp_path / "parts"))
    assert_same_state(tmp_path / "whole/latest.pt", tmp_path / "parts/latest.pt")
    assert torch.load(tmp_path / "whole/latest.pt")["training"]["augmentation"] > 0


def test_another_ctrl_c_ends_at_once_but_not_the_copy_that_torchrun_sends(monkeypatch):
    before = signal.getsignal(signal.SIGINT)  # a shell starts background jobs with Ctrl-C ignored
    with team.stop_requests() as asked:
        assert not asked()
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        assert asked()
        monkeypatch.setattr(team, "GRACE_S", 0.0)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_in_two_passes(tmp_path):
    settings = replace(TINY, images=32, precision="fp32", augment_images=200)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(one_of_two.train, (port, settings, tmp_path / "two"), nprocs=2)

    photos = one_of_two.twenty_photos()
    list(loop.train(replace(settings, accumulate=2), photos, team=ALONE, output=tmp_path / "one"))
    one, two = (torch.load(tmp_path / name / "latest.pt") for name in ("one", "two"))
    torch.testing.assert_close(two["g_ema"], one["g_ema"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(two["training"]["path_mean"], one["training"]["path_mean"])
    assert two["training"]["augmentation"] == pytest.approx(one["training"]["augmentation"])


def test_a_run_whose_numbers_break_stops_and_keeps_the_last_good_state(photos, tmp_path):
    with pytest.raises(PspError, match=r"no longer a number.*no state was saved yet.*learning_rate"):
        list(loop.train(replace(TINY, learning_rate=1e30), photos, team=ALONE, output=tmp_path / "run"))
    assert not (tmp_path / "run/latest.pt").exists()

    run = Run.start(TINY, device=ALONE.device)
    run.save(tmp_path / "good.pt")
    kept = (tmp_path / "good.pt").read_bytes()
    run.generator.conv1.noise.weight.data.fill_(float("nan"))
    with pytest.raises(PspError, match=r"weights are no longer a number after 0 images.*good\.pt"):
        run.save(tmp_path / "good.pt")
    assert (tmp_path / "good.pt").read_bytes() == kept


def test_a_full_disk_leaves_the_checkpoint_before(photos, tmp_path, monkeypatch):
    run = Run.start(TINY, device=ALONE.device)
    path = tmp_path / "latest.pt"
    run.save(path)
    kept = path.read_bytes()

    def full(_content, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match=r"No space left.*unchanged"):
        run.save(path)
    assert path.read_bytes() == kept
    assert list(tmp_path.iterdir()) == [path]


def test_the_run_folder_of_another_run_is_refused(photos, tmp_path):
    def resume(config=TINY, shown=photos, output=tmp_path):
        return list(loop.train(config, shown, team=ALONE, output=output))

    resume(replace(TINY, images=8))
    with pytest.raises(InputError, match=r"another run: learning_rate was 0\.002, is 0\.1.*--output"):
        resume(replace(TINY, learning_rate=0.1))
    with pytest.raises(InputError, match="another run: photos was"):
        resume(shown=replace(photos, fingerprint="c"))
    assert [report["images_seen"] for report in resume(replace(TINY, images=16))] == [16]

    checkpoint.write(tmp_path / "latest.pt", {"format": "psp_rt.trainer"})
    with pytest.raises(InputError, match="not made by training a generator"):
        resume()
    (tmp_path / "latest.pt").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match="cannot be read"):
        resume()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write into"):
        resume(output=tmp_path / "file")


def test_a_trained_generator_is_exported_and_runs(photos, tmp_path):
    run = Run.start(TINY, device=ALONE.device)
    stepped(run, photos, 2)
    run.save(tmp_path / "latest.pt")
    model = checkpoints.load(tmp_path / "latest.pt")
    torch.testing.assert_close(model.latent_avg, run.average.mean_style().expand(6, -1))
    export_engine(model, tmp_path / "generator.engine")
    with Translator(tmp_path / "generator.engine", device="cpu", threads=1, color="rgb") as translator:
        codes = translator.sample(3)
        picture = translator.generate(codes)
    with torch.no_grad():
        expected = run.average(torch.from_numpy(codes)[None])[0].permute(1, 2, 0).clamp(-1, 1)
    np.testing.assert_allclose(picture, (expected.numpy() + 1) * 127.5, atol=1)


def test_overfitting_is_how_far_held_out_photos_score_like_generated_ones(photos):
    run = Run.start(TINY, device=ALONE.device)
    for layer in (run.generator.to_rgb1, *run.generator.to_rgbs):
        torch.nn.init.zeros_(layer.conv.weight)
    torch.nn.init.constant_(run.generator.to_rgbs[-1].bias, -1)  # it generates black
    run.discriminator.forward = lambda pictures: pictures.mean(dim=(1, 2, 3))

    def of(value, count=8):
        return replace(photos, pixels=torch.full((count, 3, 16, 16), value, dtype=torch.uint8))

    white = of(255)
    assert loop.overfitting(run, white, white) == pytest.approx(0, abs=1e-6)
    assert loop.overfitting(run, white, of(0)) == pytest.approx(1, abs=1e-6)
    assert loop.overfitting(run, white, of(51)) == pytest.approx(0.8, abs=1e-6)
    with pytest.raises(InputError, match="3 photos are held out; expected at least 4"):
        loop.overfitting(run, white, of(0, count=3))


def test_photos_come_mirrored_half_the_time_and_depend_on_their_place_alone(photos):
    batch = photos.batch(100, 40, mirror=True)
    mirrored = (batch[:, 0, 0, -1] - 128 / 127.5 + 1).abs() < 1e-6
    assert 8 < mirrored.sum() < 32
    torch.testing.assert_close(batch[10:20], photos.batch(110, 10, mirror=True), rtol=0, atol=0)
    plain = photos.batch(0, 20, mirror=False)
    assert (plain[:, 0, 0, 0] - 128 / 127.5 + 1).abs().max() < 1e-6
    assert plain.min() >= -1
    assert plain.max() <= 1


def test_batches_that_cannot_be_divided_are_refused():
    assert TINY.pass_size(2) == 4
    with pytest.raises(InputError, match=r"batch of 8 cannot be divided among 3 processes.*--set batch"):
        TINY.pass_size(3)
    with pytest.raises(InputError, match="multiple of 4"):
        replace(TINY, batch=6).pass_size(1)


def test_sizes_that_do_not_fit_are_refused():
    assert configs.default_channels(128) == (256, 256, 256, 256, 128, 64)
    assert len(configs.default_channels(16)) == 3
    with pytest.raises(InputError, match=r"size is 100; expected one of 16, 32"):
        GanConfig(size=100)
    for change, message in (
        (
            {"discriminator_channels": (8, 8)},
            "has 2 widths, .* for 8 pixels; for size 16",
        ),
        ({"batch": 0}, "batch is 0"),
        ({"style_dim": 10**8}, "style_dim is 100000000; expected 1 to 8192"),
        ({"channels": (8, 8, 10**9)}, "channels are .*; expected numbers from 1 to 8192"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; expected a finite number"),
    ):
        with pytest.raises(InputError, match=message):
            replace(TINY, **change)


def test_a_missing_gpu_is_an_error_and_never_a_slow_fallback():
    with pytest.raises(DeviceError, match=r"cuda:99 is not available.*--device cpu"):
        team.join("cuda:99")
    with pytest.raises(DeviceError, match="expected auto, cpu"):
        team.join("gpu")


def test_a_dry_run_prints_the_settings_and_needs_no_files():
    result = CliRunner().invoke(main, ["generator", "--set", "size=64", "--set", "batch=16", "--dry-run"])
    settings = json.loads(result.output)
    assert settings["batch"] == 16
    assert settings["r1_weight"] == pytest.approx(0.0002 * 64**2 / 16)
    assert settings["generator"]["channels"] == [256, 256, 256, 256, 128]
    assert settings["generator_parameters"] > 5_000_000


def test_the_command_trains_reports_and_resumes(folder, tmp_path):
    (folder / "broken.jpg").write_bytes(b"not a picture")
    run = tmp_path / "run"

    def train(count):
        changes = (*TINY_SETTINGS, "report_images=8", f"images={count}")
        named = ("--images", folder, "--validation", folder, "--output", run)
        arguments = [*named, *(part for change in changes for part in ("--set", change))]
        return CliRunner().invoke(main, ["generator", *map(str, arguments)])

    first = train(16)
    assert first.exit_code == 0, first.output
    assert "5 photos from" in first.output
    assert "left out broken.jpg: is not a picture that Pillow can read" in first.output
    assert '"images_seen": 8' in first.output
    # Curves exist only if TensorBoard is installed.
    assert sorted(path.name for path in run.iterdir() if path.name != "tensorboard") == [
        "config.json",
        "latest.pt",
        "log.jsonl",
        "sheet-16.png",
        "sheet-8.png",
    ]
    train(24)
    lines = [json.loads(text) for text in (run / "log.jsonl").read_text().splitlines()]
    assert [report["images_seen"] for report in lines] == [8, 16, 24]
    assert {"generator_loss", "images_per_second", "overfitting", "augmentation"} <= lines[0].keys()
    assert json.loads((run / "config.json").read_text())["batch"] == 8


def test_settings_may_come_from_a_file(tmp_path):
    (tmp_path / "mine.toml").write_text("size = 32\nbatch = 4\nr1_weight = 1\n")
    options = ["generator", "--config", str(tmp_path / "mine.toml"), "--set", "batch=8", "--dry-run"]
    settings = json.loads(CliRunner().invoke(main, options).output)
    assert (settings["size"], settings["batch"], settings["r1_weight"]) == (32, 8, 1.0)


def test_mistakes_at_the_command_line_are_messages(folder, tmp_path):
    def output(*options):
        return CliRunner().invoke(main, ["generator", *options]).output

    assert "--images (a folder of photos), --output" in output()
    assert "3 widths" in output("--set", "size=32", "--set", "channels=[8, 8, 4]", "--dry-run")
    assert "did you mean channels?" in output("--set", "chanels=[8]", "--dry-run")
    assert "no usable photo" in output("--images", str(folder), "--output", str(tmp_path / "run"))
