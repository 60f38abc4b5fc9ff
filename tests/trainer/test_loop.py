"""The training loop: when it reports, saves and stops."""

import json
import signal

import pytest
import torch
from click.testing import CliRunner

from psp_rt.errors import PspError
from trainer import recipe as recipes
from trainer.__main__ import main
from trainer.cli import generator as command
from trainer.loop import loop
from trainer.loop.distributed import Interrupted, Team
from trainer.loop.report import LATEST, Column

ALONE = Team(device=torch.device("cpu"))


class Counting:
    """A training of nothing that records what the loop asks of it."""

    def __init__(self):
        self.images_seen, self.events = 0, []
        self.on_step = self.on_evaluate = lambda: None

    def step(self):
        self.images_seen += 4
        self.on_step()
        return {"total": torch.tensor(float(self.images_seen))}

    def evaluate(self, stop_requested):
        self.on_evaluate()
        self.events.append("cut short" if stop_requested() else "measured")
        return {"held_out": 1.0}

    def sheet(self):
        self.events.append("sheet")
        return [Column("nothing", torch.zeros(1, 3, 8, 8))]

    def save(self, path):
        self.events.append("saved")
        path.write_text(str(self.images_seen))

    def restore(self, path):
        self.images_seen = int(path.read_text())


@pytest.fixture
def training():
    return Counting()


def run(training, folder, total=24):
    reports = loop.run(training, total=total, report_images=10, folder=folder, team=ALONE, remedy="Rest.")
    return list(reports)


def test_a_report_comes_when_a_step_reaches_or_passes_its_number_and_at_the_end(training, tmp_path):
    reports = run(training, tmp_path)
    assert [report["images_seen"] for report in reports] == [12, 20, 24]
    assert [report["total"] for report in reports] == [8, 18, 24]  # means since the last report
    assert training.events == ["measured", "saved", "sheet"] * 3
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3


def test_a_stop_saves_before_anything_else(training, tmp_path, capfd):
    training.on_step = lambda: training.images_seen == 8 and signal.raise_signal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"stopped after 8 images.*latest\.pt\. Run the same command again"):
        run(training, tmp_path)
    assert training.events == ["saved"]
    assert "stopping after this step, saving" in capfd.readouterr().err


def test_a_stop_cuts_a_measurement_short(training, tmp_path):
    training.on_evaluate = lambda: signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="stopped after 16 images"):
        run(training, tmp_path)
    assert training.events == ["cut short", "saved", "saved"]


def test_the_last_measurement_is_not_cut_short(training, tmp_path):
    training.on_step = lambda: training.images_seen == 24 and signal.raise_signal(signal.SIGINT)
    assert run(training, tmp_path)[-1]["images_seen"] == 24
    assert training.events[-3:] == ["measured", "saved", "sheet"]


def test_a_value_that_is_not_finite_names_the_last_good_state(training, tmp_path):
    (tmp_path / LATEST).write_text("0")
    training.evaluate = lambda stop_requested: {"held_out": float("nan")}
    with pytest.raises(PspError, match=r"held_out is no longer a number after 12 .*latest\.pt.*Rest\."):
        run(training, tmp_path)
    assert (tmp_path / LATEST).read_text() == "0"


def test_a_stopped_command_is_no_error(tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise Interrupted(5, tmp_path / LATEST)

    monkeypatch.setattr(command, "train", stopped)
    monkeypatch.setattr(command, "load_photos", lambda *_: None)
    result = CliRunner().invoke(
        main, ["generator", "--images", str(tmp_path), "--output", str(tmp_path), "--device", "cpu"]
    )
    assert result.exit_code == 130
    assert "stopped after 5 images" in result.output
    assert "Error" not in result.output


@pytest.mark.parametrize("task", [*recipes.TASKS, "generator", "joint"])
def test_every_training_has_a_size_for_a_cpu(task):
    small = ["--small", "--set", "seed=3", "--dry-run"]
    options = [task] if task in ("generator", "joint") else ["encoder", "--task", task]
    result = CliRunner().invoke(main, [*options, *small])
    settings = json.loads(result.output)
    parameters = settings.get("encoder_parameters", settings.get("generator_parameters"))
    parameters = max(parameters.values()) if isinstance(parameters, dict) else parameters
    assert 10_000 < parameters < 6_000_000
