"""Training speed is measured against a plain loop over the same networks."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import readme_tables, training
from benchmarks.training_speed import drawn_files
from benchmarks.training_speed import loops as training_loops
from benchmarks.training_speed import setups as training_setups
from benchmarks.training_speed.loops import Files
from trainer import recipe as tasks
from trainer.data.pairs import TrainingSet
from trainer.generator import step as losses
from trainer.loop.average import computes_bf16
from trainer.losses.criterion import Criterion
from trainer.networks import Generator

CPU = torch.device("cpu")


@pytest.fixture
def sizes():
    return training_setups.chosen_sizes(training.parser().parse_args(["--quick"]))


@pytest.fixture
def files(tmp_path, sizes):
    images = drawn_files.photos(tmp_path / "photos", count=sizes.photos, size=sizes.photo_size)
    return Files(images=images)


@pytest.fixture
def encoder_loops(sizes, files):
    changes = (*sizes.changes, "losses.lpips=0", "losses.identity=0", "noise=none", "mirror=none", "batch=8")
    recipe = tasks.with_sizes(tasks.default("inversion", changes), sizes.generator)
    torch.manual_seed(0)
    generator = Generator(sizes.generator).eval()
    kinds = (training_loops.OurEncoderLoop, training_loops.PlainEncoderLoop)
    return [kind(recipe, generator, Criterion(recipe.losses), files, CPU) for kind in kinds]


def test_the_benchmark_measures_each_loop_of_each_task(tmp_path, capsys):
    path = tmp_path / "training.json"
    arguments = ["--quick", "--device", "cpu", "--tasks", "sketch", "generator", "--json", str(path)]
    assert training.main(arguments) == 0
    content = json.loads(path.read_text())
    assert (content["format"], content["complete"], content["quick"]) == ("psp_rt.training_speed", True, True)
    assert content["provenance"]["command"].startswith("python benchmarks/training.py --quick")
    assert [task["task"] for task in content["tasks"]] == ["sketch", "generator"]
    for task in content["tasks"]:
        names = [loop["contender"] for loop in task["loops"]]
        kinds = ["bf16", "fp32"] if computes_bf16(CPU) else ["fp32"]
        assert names == [*(f"ours, {kind}" for kind in kinds), "plain PyTorch, fp32"]
        for loop in task["loops"]:
            assert loop["images_per_s"] == pytest.approx(loop["images"] / loop["mean_ms"] * 1000)
            assert 0 <= loop["waited_for_data"] < 1
        assert task["loops"][0]["inside_networks"] < 1
        assert task["loops"][-1]["faster_than_plain"]["value"] == 1
    assert "Tiny networks: the numbers say nothing." in capsys.readouterr().out
    assert "| generator | plain PyTorch, fp32 | " in readme_tables.block(path)


def test_both_loops_learn_the_same_from_the_same_photos(encoder_loops):
    ours, plain = encoder_loops
    for loop in encoder_loops:
        loop.steps(1)  # one step shows every photo once, in whichever order
    for mine, other in zip(ours._run.encoder.parameters(), plain._encoder.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


def test_ours_begins_with_no_batch_ready(encoder_loops, monkeypatch):
    ours, made = encoder_loops[0], []
    batch = TrainingSet.batch
    monkeypatch.setattr(TrainingSet, "batch", lambda *seen: made.append(seen[1]) or batch(*seen))
    ours.steps(2)
    ours.steps(3)
    assert sorted(made) == [0, 8, 16, 24, 32]  # and none more, which a later call would find ready


def test_generators_learn_in_both_loops_and_are_regularised_as_often(sizes, files, monkeypatch):
    penalties = []
    penalty = losses.gradient_penalty
    monkeypatch.setattr(losses, "gradient_penalty", lambda *seen: penalties.append(1) or penalty(*seen))
    for kind in (training_loops.OurGeneratorLoop, training_loops.PlainGeneratorLoop):
        loop = kind(sizes.gan, files, CPU)
        network = loop._run.generator if hasattr(loop, "_run") else loop._generator
        before = network.input.input.detach().clone()
        loop.steps(17)
        assert not torch.equal(network.input.input, before)
        assert len(penalties) == 2  # at steps 0 and 16
        penalties.clear()


def test_an_interrupt_keeps_what_was_measured(tmp_path, monkeypatch):
    measured = training.measure_task

    def interrupted(task, *rest):
        if task == "generator":
            raise KeyboardInterrupt
        return measured(task, *rest)

    monkeypatch.setattr(training, "measure_task", interrupted)
    path = tmp_path / "training.json"
    arguments = [
        "--quick",
        "--device",
        "cpu",
        "--tasks",
        "super-resolution",
        "generator",
        "--json",
        str(path),
    ]
    arguments += ["--identity", str(drawn_files.identity(tmp_path / "identity.ckpt"))]
    assert training.main(arguments) == 130
    content = json.loads(path.read_text())
    assert content["complete"] is False
    assert [task["task"] for task in content["tasks"]] == ["super-resolution"]
    assert str(Path(tmp_path)) not in path.read_text()
