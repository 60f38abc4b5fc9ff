import io
import json
import sys
import types

import pytest
import torch
from PIL import Image

from psp_rt.errors import PspError
from trainer.loop.distributed import Team
from trainer.loop.report import Means, Reporter, broken, duration, is_due, left_out, progress_line, reporting


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


def test_progress_tells_share_speed_and_time_left():
    expected = "[#####...............]  25 %  1,500 of 6,000 images  10.0 images/s  8 min left"
    assert progress_line(1500, 6000, 10.0) == expected
    assert progress_line(0, 6000, 0.0).endswith("? left")
    assert progress_line(7000, 6000, 1.0).startswith("[####################] 100 %")


def test_a_terminal_gets_a_line_that_moves_and_a_file_gets_none(tmp_path, without_tensorboard):
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        reporter = Reporter(tmp_path, total=100, images_seen=0, stream=stream)
        reporter.progress(50)
        reporter.progress(51)  # too soon to show
        reporter.close()
    assert terminal.getvalue().count("\r\x1b[K[") == 1
    assert "50 of 100 images" in terminal.getvalue()
    assert file.getvalue() == ""


def test_reports_are_lines_of_json_that_a_resumed_run_adds_to(tmp_path, without_tensorboard):
    for seen in (10, 20):
        reporter = Reporter(tmp_path, total=100, images_seen=seen)
        reporter.report({"images_seen": seen, "l2": 0.123456789})
        reporter.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"images_seen": 10, "l2": 0.123457}, {"images_seen": 20, "l2": 0.123457}]


def test_tensorboard_gets_curves_and_sheets_where_it_is_installed(tmp_path, monkeypatch):
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Board
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    reporter = Reporter(tmp_path, total=100, images_seen=0)
    reporter.report({"images_seen": 10, "l2": 0.5})
    path = reporter.sheet(10, [torch.zeros(2, 3, 8, 8)] * 3)
    reporter.close()
    assert Board.last.folder == tmp_path / "tensorboard"
    assert ("l2", 0.5, 10) in Board.last.scalars
    assert Board.last.pictures == [("sheet", (32, 48, 3), 10, "HWC")]
    assert Board.last.closed
    with Image.open(path) as sheet:
        assert (path.name, sheet.size) == ("sheet-10.png", (48, 32))


def test_curves_are_closed_where_a_run_fails_too(tmp_path, monkeypatch):
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Board
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    alone = Team(device=torch.device("cpu"))
    with pytest.raises(PspError), reporting(tmp_path, total=9, images_seen=0, team=alone):
        raise PspError("the loss is no longer a number")
    assert Board.last.closed


def test_only_the_process_that_leads_reports(tmp_path):
    second = Team(device=torch.device("cpu"), rank=1, size=2)
    with reporting(tmp_path / "new", total=9, images_seen=0, team=second) as reporter:
        assert reporter is None
    assert not (tmp_path / "new").exists()


def test_a_report_that_cannot_be_written_says_so(tmp_path, without_tensorboard):
    (tmp_path / "log.jsonl").mkdir()
    reporter = Reporter(tmp_path, total=100, images_seen=0)
    with pytest.raises(PspError, match=r"cannot write .*log\.jsonl"):
        reporter.report({"images_seen": 10})


def test_means_count_each_value_as_often_as_it_was_reported():
    means = Means(images_before=100)
    means.add({"loss": torch.tensor(1.0), "penalty": torch.tensor(5.0)})
    means.add({"loss": torch.tensor(3.0)})
    found = means.of(108)
    assert (found["loss"], found["penalty"], found["images_seen"]) == (2, 5, 108)
    assert found["images_per_second"] > 0
    assert found["waited_for_data"] == 0


def test_a_report_is_due_when_a_step_reaches_or_passes_its_number():
    assert [seen for seen in range(6, 42, 6) if is_due(seen, batch=6, every=10)] == [12, 24, 30]


def test_the_first_files_left_out_are_named_and_all_are_counted():
    assert left_out({}) == []
    assert left_out({"a.jpg": "no image"}) == ["  left out a.jpg: no image"]
    lines = left_out({f"{number}.jpg": "no image" for number in range(8)})
    assert len(lines) == 6
    assert lines[-1] == "  left out 8 in all"


def test_a_value_that_is_no_number_is_named():
    assert broken({"l2": 1.0, "w_norm": float("nan"), "total": float("inf")}) == "w_norm"
    assert broken({"l2": 1.0}) is None
