import argparse
import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from export.checkpoints import load as exported
from psp_rt.errors import PspError
from tests.models import tiny_runs
from tests.models.tiny_models import write_official
from tests.models.tiny_runs import CHANGES, CONFIG, recipe_of, start
from trainer import checkpoint as checkpoints
from trainer import recipe as tasks
from trainer.__main__ import main
from trainer.checkpoint import load_generator
from trainer.data import inputs
from trainer.data.pairs import TrainingSet
from trainer.encoder import training as encoder_training
from trainer.loop import report as run_folder
from trainer.loop.distributed import Team
from trainer.losses.criterion import Criterion
from trainer.losses.lpips import LpipsAlex
from trainer.networks import Encoder, EncoderConfig, Generator, GeneratorConfig, Translation

ROOT = Path(__file__).parents[2]
ALONE = Team(device=torch.device("cpu"))


@pytest.fixture
def faces(tmp_path):
    return tiny_runs.write_faces(tmp_path / "faces")


@pytest.fixture
def generator():
    return tiny_runs.draw_generator()


@pytest.fixture
def generator_path(generator, tmp_path):
    path = tmp_path / "generator.pt"
    torch.save({"g_ema": generator.state_dict(), "latent_avg": generator.mean_style()}, path)
    return path


def train(run, faces, output, *, validation=None, criterion=None):
    output.mkdir(exist_ok=True)
    data = TrainingSet.load(run.recipe, faces)
    criterion = criterion or Criterion(run.recipe.losses)
    return list(
        encoder_training.train(run, criterion, data, team=ALONE, output=output, validation=validation)
    )


def assert_same(first, second):
    assert torch.equal(torch.tensor(first.images_seen), torch.tensor(second.images_seen))
    states = [
        [run.encoder.state_dict(), run.model.state_dict(), run.optimizer.state_dict()["state"]]
        for run in (first, second)
    ]
    for one, other in zip(*states, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def arguments(faces, generator_path, output, *changes):
    changes = [part for change in (*CHANGES, *changes) for part in ("--set", change)]
    named = ["--generator", str(generator_path), "--images", str(faces), "--output", str(output)]
    return ["encoder", "--task", "inversion", "--device", "cpu", *named, *changes]


@pytest.mark.parametrize(
    ("task", "changes"),
    [("inversion", ()), ("sketch", ("parts=2", "optimizer=adam", "precision=bf16"))],
)
def test_resume_is_exact(task, changes, generator, faces, tmp_path):
    whole = start(recipe_of(task, *changes), generator)
    train(whole, faces, tmp_path / "whole")
    half = start(recipe_of(task, "images=12", *changes), generator)
    train(half, faces, tmp_path / "half")
    rest = start(recipe_of(task, *changes), generator)
    rest.restore(tmp_path / "half" / "latest.pt")
    assert rest.images_seen == 12
    train(rest, faces, tmp_path / "half")
    assert_same(rest, whole)


def test_training_draws_noise_that_differs_from_step_to_step(generator, faces):
    run = start(recipe_of(), generator)
    part = TrainingSet.load(run.recipe, faces).batch(0, 4)
    criterion = Criterion(run.recipe.losses)
    losses = []
    for seen in (0, 0, 4):
        torch.manual_seed(encoder_training.step_seed(0, seen))
        losses.append(encoder_training.compute_losses(run, run.encoder, criterion, part)["l2"].item())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("encoder", ["psp", "w", "naive_w+", "e4e"])
def test_one_batch_can_be_learned_by_heart_by_every_encoder(encoder, generator, faces):
    run = start(
        recipe_of("inversion", f"encoder={encoder}", "optimizer=adam", "learning_rate=0.01"), generator
    )
    part = TrainingSet.load(run.recipe, faces).batch(0, 4)
    criterion = Criterion(run.recipe.losses)
    errors = [
        encoder_training.train_step(run, run.encoder, criterion, [part], ALONE)["l2"].item()
        for _ in range(25)
    ]
    assert np.mean(errors[-5:]) < 0.6 * np.mean(errors[:2])


def test_the_generator_stays_as_it_is(generator, faces, tmp_path):
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    run = start(recipe_of(), generator)
    train(run, faces, tmp_path / "run")
    torch.testing.assert_close(dict(run.model.generator.state_dict()), before, rtol=0, atol=0)


def test_an_encoder_that_says_nothing_gives_the_mean_face(generator, faces):
    run = start(recipe_of(), generator)
    for encoder in (run.encoder, run.model.encoder):
        for value in encoder.parameters():
            value.data.zero_()
    part = TrainingSet.load(run.recipe, faces).plain([0, 1])
    pictures, offsets = encoder_training.translate(run, part)
    mean = generator(run.mean_style.expand(2, CONFIG.num_styles, -1))
    torch.testing.assert_close(pictures, mean)
    assert (offsets == 0).all()


def test_bfloat16_computes_nearly_the_same(generator, faces, monkeypatch):
    monkeypatch.setattr(
        "trainer.loop.average.computes_bf16", lambda device: True
    )  # emulated, where it is not there
    losses = {}
    for precision in ("fp32", "bf16"):
        run = start(recipe_of("inversion", f"precision={precision}"), generator)
        part = TrainingSet.load(run.recipe, faces).batch(0, 4)
        torch.manual_seed(0)
        total = encoder_training.compute_losses(run, run.encoder, Criterion(run.recipe.losses), part)["total"]
        total.backward()
        assert all(value.grad.dtype == torch.float32 for value in run.encoder.parameters())
        losses[precision] = total.item()
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03)


def test_parts_and_processes_share_a_step_without_leaving_or_repeating_an_image(generator, faces):
    data = TrainingSet.load(recipe_of("inversion", "batch=12", "parts=2"), faces)
    whole = data.batch(24, 12).sources
    shares = [
        part.sources
        for rank in range(3)
        for part in encoder_training.load_parts(data, 24, Team(device=ALONE.device, rank=rank, size=3))
    ]
    assert [len(share) for share in shares] == [2] * 6
    assert torch.equal(torch.cat(shares), whole)
    with pytest.raises(PspError, match=r"12 cannot be divided among 5 processes .* a multiple of 10"):
        encoder_training.check_share(data.recipe, Team(device=ALONE.device, size=5))


def test_two_processes_learn_what_one_learns_in_two_parts(generator_path, faces, tmp_path):
    def command(output, *changes):
        return ["-m", "trainer", *arguments(faces, generator_path, tmp_path / output, *changes, "images=8")]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launch, *command("two")], cwd=ROOT, env=environment, check=True, capture_output=True)
    result = CliRunner().invoke(main, command("one", "parts=2")[2:])
    assert result.exit_code == 0, result.output
    one, two = (
        checkpoints.load(tmp_path / name / "latest.pt").training["encoder"] for name in ("one", "two")
    )
    assert one["images_seen"] == two["images_seen"] == 8
    for name, value in one["encoder"].items():
        if "running" not in name and "num_batches" not in name:  # each process has its own statistics
            torch.testing.assert_close(two["encoder"][name], value, rtol=1e-4, atol=1e-6)


class Spoiled(Criterion):
    """Gives NaN from the fourth step on."""

    calls = 0

    def forward(self, images, targets, offsets):
        self.calls += 1
        losses = super().forward(images, targets, offsets)
        return losses if self.calls < 5 else {name: value * float("nan") for name, value in losses.items()}


def test_nan_stops_the_run_and_leaves_the_last_good_checkpoint(generator, faces, tmp_path):
    run = start(recipe_of(), generator)
    output = tmp_path / "run"
    with pytest.raises(
        PspError, match=r"total is no longer a number after 24 images; .*latest.pt is the last good"
    ):
        train(run, faces, output, criterion=Spoiled(run.recipe.losses))
    kept = checkpoints.load(output / "latest.pt").training["encoder"]
    assert kept["images_seen"] == 12
    assert all(value.isfinite().all() for value in kept["encoder"].values())


def test_weights_that_are_nan_are_never_saved(generator, tmp_path):
    run = start(recipe_of(), generator)
    run.save(tmp_path / "latest.pt")
    before = (tmp_path / "latest.pt").read_bytes()
    next(run.encoder.parameters()).data[0] = float("nan")
    with pytest.raises(PspError, match=r"weights are no longer a number after 0 images"):
        run.save(tmp_path / "latest.pt")
    assert (tmp_path / "latest.pt").read_bytes() == before


def test_ctrl_c_saves_after_the_step_and_the_run_goes_on_exactly(generator, faces, tmp_path, monkeypatch):
    step = encoder_training.train_step

    def interrupted(run, *rest):
        losses = step(run, *rest)
        if run.images_seen == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return losses

    calibrate, latest = encoder_training.calibrate, tmp_path / "run" / "latest.pt"
    saved_first = []

    def timed(*arguments, **limits):  # this must not delay the save: torchrun kills after 30 s
        saved_first.append(latest.exists() and limits["seconds"] < 10)
        calibrate(*arguments, **limits)

    run = start(recipe_of(), generator)
    before = signal.getsignal(signal.SIGINT)  # a shell starts background jobs with Ctrl-C ignored
    with monkeypatch.context() as patch:
        patch.setattr(encoder_training, "train_step", interrupted)
        patch.setattr(encoder_training, "calibrate", timed)
        with pytest.raises(PspError, match=r"stopped after 8 images.*Run the same command again to resume"):
            train(run, faces, tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is before
    assert saved_first == [True]
    resumed, whole = start(recipe_of(), generator), start(recipe_of(), generator)
    resumed.restore(tmp_path / "run" / "latest.pt")
    train(resumed, faces, tmp_path / "run")
    train(whole, faces, tmp_path / "whole")
    assert_same(resumed, whole)


def test_a_full_disk_leaves_the_checkpoint_before_it(generator, faces, tmp_path, monkeypatch):
    run = start(recipe_of(), generator)
    saved = torch.save

    def full(content, file):
        if content["training"]["encoder"]["images_seen"] > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        saved(content, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        PspError, match=r"No space left on device.*Free some space, then run the same command"
    ):
        train(run, faces, tmp_path / "run")
    assert checkpoints.load(tmp_path / "run/latest.pt").training["encoder"]["images_seen"] == 12
    assert not list((tmp_path / "run").glob("*.partial"))


def test_a_checkpoint_of_something_else_is_refused(generator, tmp_path):
    run = start(recipe_of(), generator)
    model = Translation(Encoder.create(run.encoder.config), generator, None)
    checkpoints.save(
        tmp_path / "latest.pt",
        checkpoints.Checkpoint(task="sketch", input_kind="gray", labels=None, model=model),
    )
    with pytest.raises(PspError, match="was not made by training an encoder"):
        run.restore(tmp_path / "latest.pt")


def test_a_run_shows_itself(generator, faces, tmp_path):
    run = start(recipe_of(), generator)
    held_out = TrainingSet.load(run.recipe, faces)
    reports = train(run, faces, tmp_path / "run", validation=held_out)
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["images_seen"] for line in lines] == [12, 24]
    assert lines[1]["l2"] == pytest.approx(reports[1]["l2"], abs=1e-6)
    assert {"images_per_second", "waited_for_data", "validation_l2", "w_norm", "total"} <= set(lines[0])
    with Image.open(tmp_path / "run/sheet-24.png") as sheet:
        assert sheet.size == (3 * 32 * 2, 6 * 32 * 2 + 14)  # input, photo, result; six photos, twice as large


def test_what_is_saved_and_measured_has_statistics_of_the_averaged_weights(generator, faces, tmp_path):
    run = start(recipe_of("inversion", "learning_rate=0.05", "halflife_images=1000"), generator)
    reports = train(run, faces, tmp_path / "run", validation=TrainingSet.load(run.recipe, faces))
    data, kept = TrainingSet.load(run.recipe, faces), checkpoints.load(tmp_path / "run/latest.pt").model
    sources = inputs.to_network(data.batch(24, 24).sources, run.recipe)  # six photos, each four times
    seen = kept.encoder.input_layer[0](sources)
    norm = kept.encoder.input_layer[1]
    torch.testing.assert_close(norm.running_mean, seen.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(norm.running_var, seen.var(dim=(0, 2, 3)))
    again = encoder_training.evaluate(run, Criterion(run.recipe.losses), data)
    assert reports[-1]["validation_l2"] == pytest.approx(again["validation_l2"])  # measured after it
    live = run.encoder.input_layer[1].running_mean
    assert not torch.allclose(live, norm.running_mean, rtol=0.1)


def test_validation_counts_every_image_once(generator, faces):
    run = start(recipe_of(), generator)
    data = TrainingSet.load(run.recipe, faces)
    criterion = Criterion(run.recipe.losses)
    torch.testing.assert_close(
        torch.tensor(encoder_training.evaluate(run, criterion, data, batch=4)["validation_l2"]),
        torch.tensor(encoder_training.evaluate(run, criterion, data, batch=1)["validation_l2"]),
    )


def test_validation_gives_the_same_figures_each_time(generator, faces):
    run = start(recipe_of("inversion", "losses.lpips=0.8"), generator)
    data, lpips = TrainingSet.load(run.recipe, faces), LpipsAlex()
    for head in lpips.heads:
        head.fill_(0.1)
    criterion = Criterion(run.recipe.losses, lpips=lpips)
    first, second = (encoder_training.evaluate(run, criterion, data) for _ in range(2))
    assert first == second


def test_the_command_trains_resumes_and_its_result_is_ready_for_export(generator_path, faces, tmp_path):
    (faces / "broken.jpg").write_bytes(b"no picture")
    output = tmp_path / "run"
    first = CliRunner().invoke(main, arguments(faces, generator_path, output, "images=12"))
    assert first.exit_code == 0, first.output
    assert "6 photos" in first.output
    assert "left out broken.jpg: is not a picture that Pillow can read" in first.output
    again = CliRunner().invoke(main, arguments(faces, generator_path, output))
    assert again.exit_code == 0, again.output
    assert "resuming after 12 images" in again.output
    assert json.loads((output / "config.json").read_text())["recipe"]["images"] == 24
    model, trained = exported.load(output / "latest.pt"), checkpoints.load(output / "latest.pt").model
    assert model.task == "inversion"
    assert (model.input.kind, model.input.height, model.input.width) == ("rgb", 32, 32)
    photo = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(model.encoder(photo) + model.latent_avg, trained.encode(photo))


def test_a_folder_of_another_run_is_refused_and_left_as_it_was(generator, generator_path, faces, tmp_path):
    output = tmp_path / "run"
    assert CliRunner().invoke(main, arguments(faces, generator_path, output, "images=4")).exit_code == 0
    before = {file.name: file.read_bytes() for file in output.iterdir()}

    def refusal(*changes, path=generator_path):
        result = CliRunner().invoke(main, arguments(faces, path, output, *changes))
        assert result.exit_code == 1
        return result.output

    assert re.search(r"another run: recipe.seed was 0, is 7\. Pass the same settings", refusal("seed=7"))
    other = tmp_path / "other.pt"
    torch.save({"g_ema": Generator(GeneratorConfig(channels=(8, 8, 6), style_dim=12)).state_dict()}, other)
    assert "another run: generator was" in refusal(path=other)
    Image.new("RGB", (70, 70)).save(faces / "new.png")
    assert "data was '6 images" in refusal()
    assert {file.name: file.read_bytes() for file in output.iterdir()} == before
    (tmp_path / "run/config.json").unlink()
    assert "holds files but no config.json" in refusal()


def test_an_output_that_cannot_be_written_is_refused_before_training(generator_path, faces, tmp_path):
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(main, arguments(faces, generator_path, tmp_path / "file" / "run"))
    assert result.exit_code == 1
    assert "cannot write into" in result.output


@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_dry_run_needs_no_files(task):
    result = CliRunner().invoke(main, ["encoder", "--task", task, "--dry-run", "--encoder", "w"])
    settings = json.loads(result.output)
    assert settings["recipe"]["task"] == task
    assert settings["recipe"]["encoder"] == "w"
    assert settings["generator_size"] == 1024
    assert settings["encoder_parameters"] > 30e6
    needs = settings["needs"]
    assert "rosinality" in needs["--generator"]
    assert ("--pairs" in needs) == (settings["recipe"]["source"] == "pairs")
    losses = settings["recipe"]["losses"]
    assert ("--identity" in needs) == (losses["identity"] > 0)
    assert "alexnet" in needs["--lpips-features"]


def test_a_dry_run_names_no_file_that_is_given_or_whose_loss_is_left_out(generator_path, faces, tmp_path):
    changes = ["--set", "losses.identity=0", "--set", "lpips_network=vgg"]
    result = CliRunner().invoke(main, [*arguments(faces, generator_path, tmp_path), *changes, "--dry-run"])
    needs = json.loads(result.output)["needs"]
    assert not {"--generator", "--images", "--output", "--identity"} & set(needs)


def test_the_generator_of_an_engine_is_had_by_another_command():
    with pytest.raises(PspError, match=r"python models/recover.py FILE.engine FILE.pt"):
        load_generator(ROOT / "models" / "sketch.engine")


def test_a_dry_run_resolves_the_sizes_of_a_generator_that_is_given(generator_path):
    result = CliRunner().invoke(
        main, ["encoder", "--task", "inversion", "--dry-run", "--generator", str(generator_path)]
    )
    settings = json.loads(result.output)
    assert (settings["generator_size"], settings["num_styles"]) == (32, 8)
    assert settings["recipe"]["loss_size"] == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "choose what to train: --task with one of inversion, "),
        (["--task", "inversion"], "missing: --generator (a generator made by"),
        (["--task", "inversion", "--set", "batch"], "--set batch cannot be parsed"),
    ],
)
def test_what_is_missing_is_said(options, message):
    result = CliRunner().invoke(main, ["encoder", *options])
    assert result.exit_code == 1
    assert message in result.output


def test_a_generator_whose_training_failed_is_refused(generator, tmp_path):
    generator.conv1.noise.weight.data.fill_(float("nan"))
    torch.save({"g_ema": generator.state_dict()}, tmp_path / "g.pt")
    with pytest.raises(PspError, match=r"g\.pt holds NaN or infinity in conv1\.noise\.weight"):
        load_generator(tmp_path / "g.pt")


def test_a_full_disk_leaves_the_configuration_of_a_run(tmp_path, monkeypatch):
    run_folder.open_folder(tmp_path / "run", {"batch": 4, "images": 8})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(PspError, match="No space left on device"):
            run_folder.open_folder(tmp_path / "run", {"batch": 4, "images": 16})
    run_folder.open_folder(tmp_path / "run", {"batch": 4, "images": 16})
    with pytest.raises(PspError, match="batch was 4, is 5"):
        run_folder.open_folder(tmp_path / "run", {"batch": 5, "images": 16})


@pytest.mark.parametrize("side", [32, 48, 64, 96])
@pytest.mark.parametrize("kind", ["psp", "e4e"])
def test_heads_reach_a_point_from_every_size_that_is_allowed(kind, side):
    config = EncoderConfig(
        kind=kind, num_styles=8, input_height=side, input_width=side, style_dim=8, widths=(4, 4, 6, 6),
        depths=(1, 1, 1, 1), head_width=4,
    )  # fmt: skip
    assert Encoder.create(config).eval()(torch.zeros(1, 3, side, side)).shape == (1, 8, 8)


def test_an_own_recipe_is_trained_by_its_own_name(tmp_path):
    (tmp_path / "cats.toml").write_text('task = "cats"\nkind = "rgb"\nsource = "photo"\nmirror = "none"\n')
    recipe = ["--recipe", str(tmp_path / "cats.toml"), "--dry-run"]
    assert json.loads(CliRunner().invoke(main, ["encoder", *recipe]).output)["recipe"]["task"] == "cats"
    result = CliRunner().invoke(main, ["encoder", *recipe, "--task", "sketch"])
    assert "is a recipe for cats, not for sketch; omit --task" in result.output


def test_generators_of_every_format_give_the_same_pictures(generator, tmp_path):
    mean, codes = generator.mean_style(), torch.randn(1, CONFIG.num_styles, CONFIG.style_dim)
    state = generator.state_dict()
    arguments_kept = argparse.Namespace(size=32)
    torch.save({"g_ema": state, "args": arguments_kept}, tmp_path / "rosinality.pt")
    model = Translation(Encoder.create(recipe_of().encoder_config(CONFIG)), generator, None)
    own = checkpoints.Checkpoint(task="x", input_kind="rgb", labels=None, model=model)
    checkpoints.save(tmp_path / "own.pt", own)
    decoder = {f"decoder.{name}": value for name, value in state.items()}
    torch.save({"state_dict": decoder, "opts": {}, "latent_avg": mean.repeat(8, 1)}, tmp_path / "psp.pt")
    for name in ("rosinality", "own", "psp"):
        loaded, average = load_generator(tmp_path / f"{name}.pt")
        torch.testing.assert_close(loaded(codes), generator(codes), rtol=0, atol=0)
        torch.testing.assert_close(average, mean)
        assert not any(value.requires_grad for value in loaded.parameters())


def test_an_official_checkpoint_gives_its_generator(tmp_path):
    arrays = write_official(tmp_path / "official.pt")
    loaded, average = load_generator(tmp_path / "official.pt")
    np.testing.assert_array_equal(loaded.conv1.conv.weight.numpy(), arrays["decoder.conv1.conv.weight"])
    np.testing.assert_allclose(average.numpy(), arrays["latent_avg"].mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize(
    ("average", "shown"),
    [("text", "'text'"), (torch.zeros(3), r"\[3\]"), (torch.zeros(1, 8, CONFIG.style_dim), "1, 8")],
)
def test_an_average_of_another_form_is_named(average, shown, generator, tmp_path):
    torch.save({"g_ema": generator.state_dict(), "latent_avg": average}, tmp_path / "file.pt")
    with pytest.raises(PspError, match=rf"has the latent_avg .*{shown}.*; expected numbers"):
        load_generator(tmp_path / "file.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": 1}, r"holds weights; expected a generator made by"),
        (
            {"g_ema": {"a": torch.zeros(1)}},
            r"contains no known StyleGAN2.*holds g_ema; expected a generator made by",
        ),
        ([1, 2], r"holds a list; expected"),
    ],
)
def test_a_file_that_is_no_generator_says_what_was_expected(content, message, tmp_path):
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(PspError, match=message):
        load_generator(tmp_path / "file.pt")
    (tmp_path / "file.pt").write_bytes(b"text")
    with pytest.raises(PspError, match=r"cannot be read as a generator"):
        load_generator(tmp_path / "file.pt")
