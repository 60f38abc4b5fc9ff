import io
import json
import sys
import types

import pytest
import torch
from PIL import Image

from psp_rt.errors import PspError
from trainer.loop.distributed import Team
from trainer.loop.report import (
    Column,
    Means,
    Progress,
    Reporter,
    duration,
    first_not_finite,
    progress_line,
    reporting,
    skipped_lines,
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Board:
    """Stands in for TensorBoard's writer."""

    def __init__(self, folder):
        self.folder, self.scalars, self.pictures, self.closed = folder, [], [], False
        Board.last = self

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def add_image(self, name, picture, step, dataformats):
        self.pictures.append((name, picture.shape, step, dataformats))

    def close(self):
        self.closed = True


@pytest.fixture
def without_tensorboard(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (29, "29 s"),
        (60, "1 min"),
        (5000, "1 h 23 min"),
        (200_000, "2 d 7 h"),
        (3599, "1 h 0 min"),
    ],
)
def test_a_time_is_told_in_the_unit_that_suits_it(seconds, text):
    assert duration(seconds) == text


def test_progress_shows_share_speed_loss_and_time_left():
    expected = "[#####...............]  25 %  1,500 of 6,000 images  10.0 images/s  8 min left"
    assert progress_line(1500, 6000, 10.0) == expected
    assert "  loss 0.250  " in progress_line(1500, 6000, 10.0, loss=0.25)
    assert progress_line(0, 6000, 0.0).endswith("? left")
    assert progress_line(7000, 6000, 1.0).startswith("[####################] 100 %")


def test_a_terminal_gets_a_moving_bar_and_a_file_gets_lines():
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        progress = Progress(stream)
        progress.say("6 photos")
        for done in range(100):
            if progress.is_due():
                progress.update(progress_line(done, 100, 1.0))
        progress.count("measuring", 0, 5)  # other work is named at once
        progress.clear()
    assert file.getvalue().splitlines()[0] == "6 photos"
    assert len(file.getvalue().splitlines()) == 3
    assert "measuring" in file.getvalue()
    assert terminal.getvalue().count("\r\x1b[K[") == 1
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_processes_that_do_not_lead_show_nothing():
    file = io.StringIO()
    progress = Progress(file, silent=True)
    progress.say("text")
    progress.update("text")
    assert file.getvalue() == ""


def test_reports_are_lines_of_json_that_a_resumed_run_adds_to(tmp_path, without_tensorboard):
    for seen in (10, 20):
        reporter = Reporter(tmp_path)
        reporter.report({"images_seen": seen, "l2": 0.123456789})
        reporter.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"images_seen": 10, "l2": 0.123457}, {"images_seen": 20, "l2": 0.123457}]


def test_tensorboard_gets_curves_and_sheets_where_it_is_installed(tmp_path, monkeypatch):
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Board
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    reporter = Reporter(tmp_path)
    reporter.report({"images_seen": 10, "l2": 0.5})
    path = reporter.sheet(10, [Column("input", torch.zeros(2, 3, 8, 8))] * 3)
    reporter.close()
    assert Board.last.folder == tmp_path / "tensorboard"
    assert ("l2", 0.5, 10) in Board.last.scalars
    assert Board.last.pictures == [("sheet", (46, 48, 3), 10, "HWC")]
    assert Board.last.closed
    with Image.open(path) as sheet:
        assert (path.name, sheet.size) == ("sheet-10.png", (48, 46))  # a line of headings above the pictures


def test_curves_are_closed_where_a_run_fails_too(tmp_path, monkeypatch):
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Board
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    alone = Team(device=torch.device("cpu"))
    with pytest.raises(PspError), reporting(tmp_path, alone):
        raise PspError("the loss is no longer a number")
    assert Board.last.closed


def test_only_the_process_that_leads_reports(tmp_path):
    second = Team(device=torch.device("cpu"), rank=1, size=2)
    with reporting(tmp_path / "new", second) as reporter:
        assert reporter is None
    assert not (tmp_path / "new").exists()


def test_a_report_that_cannot_be_written_says_so(tmp_path, without_tensorboard):
    (tmp_path / "log.jsonl").mkdir()
    reporter = Reporter(tmp_path)
    with pytest.raises(PspError, match=r"cannot write .*log\.jsonl"):
        reporter.report({"images_seen": 10})


def test_means_count_each_value_as_often_as_it_was_reported():
    means = Means(images_before=100)
    means.add({"loss": torch.tensor(1.0), "penalty": torch.tensor(5.0)})
    means.add({"loss": torch.tensor(3.0)})
    found = means.report(108)
    assert (found["loss"], found["penalty"], found["images_seen"]) == (2, 5, 108)
    assert found["images_per_second"] > 0


def test_the_first_files_left_out_are_named_and_all_are_counted():
    assert skipped_lines({}) == []
    assert skipped_lines({"a.jpg": "no image"}) == ["  left out a.jpg: no image"]
    lines = skipped_lines({f"{number}.jpg": "no image" for number in range(8)})
    assert len(lines) == 6
    assert lines[-1] == "  left out 8 in all"


def test_a_value_that_is_not_finite_is_named():
    assert first_not_finite({"l2": 1.0, "w_norm": float("nan"), "total": float("inf")}) == "w_norm"
    assert first_not_finite({"l2": 1.0}) is None
