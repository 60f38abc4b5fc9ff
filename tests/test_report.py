import io
import json
import sys
import types

import pytest
import torch
from PIL import Image

from psp_rt.errors import PspError
from trainer.report import Reporter, duration, progress_line


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


def test_a_report_that_cannot_be_written_says_so(tmp_path, without_tensorboard):
    (tmp_path / "log.jsonl").mkdir()
    reporter = Reporter(tmp_path, total=100, images_seen=0)
    with pytest.raises(PspError, match=r"cannot write .*log\.jsonl"):
        reporter.report({"images_seen": 10})
