"""models/train.py: the commands that make the models exist, fit together, and stop at the first failure."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from models import train
from trainer.__main__ import main
from trainer.networks import Encoder, Generator
from trainer.networks.encoders import EncoderConfig
from trainer.networks.generator import GeneratorConfig

FILES = ["--faces", "faces", "--held-out", "others", "--lpips-features", "a.pth", "--lpips-heads", "b.pth"]


def commands(*arguments):
    args = train.parser().parse_args([*FILES, *map(str, arguments)])
    return list(train.commands(args))


def test_without_a_gpu_all_models_are_trained_together_and_then_grown(tmp_path):
    found = commands("--device", "cpu", "--output", tmp_path, "--models", "there", "--count", 99)
    small, grown, *exports = found
    for joint in (small, grown):
        assert joint[joint.index("--device") + 1] == "cpu"  # a GPU that is there is not taken for it
        assert joint[1:3] == ["-m", "torch.distributed.run"]
        assert [joint[at + 1] for at, part in enumerate(joint) if part == "--task"] == list(train.TASKS)
        assert "images=99" in joint
    made = Path(small[small.index("--output") + 1])
    starts = [grown[at + 1] for at, part in enumerate(grown) if part == "--start-from"]
    assert starts == [str(made / f"{task}.pt") for task in train.TASKS]
    assert "size=128" in grown
    for task, export, describe in zip(train.TASKS, exports[::2], exports[1::2], strict=True):
        assert export[1:4] == ["-m", "export", str(tmp_path / "joint" / f"{task}.pt")]
        assert export[export.index("--output") + 1] == str(Path("there") / f"{task}.engine")
        assert export[-4:] == ["--alignment", "ffhq", "--default-layers", "3-"]
        made_engine = str(Path("there") / f"{task}.engine")
        assert describe[1:] == [
            "-m",
            "export",
            "describe",
            made_engine,
            "--pictures",
            "others",
            "--from-photos",
        ]


def test_on_a_gpu_a_generator_comes_first_and_the_encoders_build_upon_it(tmp_path):
    found = commands("--device", "cuda", "--identity", "face.pt", "--output", tmp_path)
    generator, encoders, exports = found[0], found[1:4], found[4:]
    for training in (generator, *encoders):
        assert training[training.index("--device") + 1] == "cuda"
    made = Path(generator[generator.index("--output") + 1]) / "latest.pt"
    for task, encoder, export in zip(train.TASKS, encoders, exports[::2], strict=True):
        assert encoder[encoder.index("--task") + 1] == task
        assert encoder[encoder.index("--generator") + 1] == str(made)
        assert ("--identity" in encoder) == (task != "sketch")
        assert export[3] == str(Path(encoder[encoder.index("--output") + 1]) / "latest.pt")


def test_the_trainer_takes_the_commands_as_they_are(tmp_path):
    for folder in ("faces", "others"):
        (tmp_path / folder).mkdir()
    for file in ("a.pth", "b.pth", "face.pt"):
        (tmp_path / file).touch()
    made = commands("--device", "cuda", "--identity", tmp_path / "face.pt", "--output", tmp_path)
    trainings = [command[3:] for command in made if command[2] == "trainer"]
    assert len(trainings) == 4
    for training in trainings:
        arguments = [str(tmp_path / part) if part in (*FILES[1::2],) else part for part in training]
        if "--generator" in arguments:  # which the first command would have made
            at = arguments.index("--generator")
            del arguments[at : at + 2]
        done = CliRunner().invoke(main, [*arguments, "--dry-run"])
        assert done.exit_code == 0, done.output


def test_the_networks_of_a_gpu_run_fit_into_a_model_that_ships():
    generator = GeneratorConfig(
        channels=tuple(train.GENERATOR["channels"]), style_dim=train.GENERATOR["style_dim"]
    )
    assert generator.size == train.GENERATOR["size"] == train.ENCODER["input_size"]
    encoder = EncoderConfig(
        num_styles=generator.num_styles,
        style_dim=generator.style_dim,
        input_height=generator.size,
        input_width=generator.size,
        widths=tuple(train.ENCODER["widths"]),
        depths=tuple(train.ENCODER["depths"]),
        head_width=train.ENCODER["head_width"],
    )
    tensors = [*Generator(generator).state_dict().values(), *Encoder.create(encoder).state_dict().values()]
    graphs_bytes = 200_000
    assert 2 * sum(tensor.numel() for tensor in tensors) + graphs_bytes < train.LIMIT_BYTES


def test_the_first_command_that_fails_ends_it(monkeypatch, capsys, tmp_path):
    run = []

    def fail(command, **_):
        run.append(command)
        return subprocess.CompletedProcess(command, returncode=3)

    monkeypatch.setattr(train.subprocess, "run", fail)
    assert train.main([*FILES, "--device", "cpu", "--output", str(tmp_path)]) == 3
    assert len(run) == 1
    assert "run the same again to resume" in capsys.readouterr().err


def test_a_gpu_run_without_an_identity_network_is_refused(capsys):
    with pytest.raises(SystemExit):
        train.main([*FILES, "--device", "cuda"])
    assert "name its network with --identity FILE" in capsys.readouterr().err


def test_a_model_that_is_too_large_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(train, "LIMIT_BYTES", 3)
    monkeypatch.setattr(train, "commands", lambda args: iter([[sys.executable, "-c", ""]]))
    (tmp_path / "sketch.engine").write_bytes(b"four")
    assert train.main([*FILES, "--device", "cpu", "--models", str(tmp_path)]) == 1
    assert "above 3 bytes: sketch.engine" in capsys.readouterr().err
