"""Trainings and exports that are killed go on where they were, and leave no half file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")


def after_kills(kind: str, folder: Path, kills: int) -> str:
    """Return what `kills` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainer.kills", kind, str(folder), str(kills)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_encoder_that_was_killed_twice_has_the_same_weights(tmp_path):
    assert after_kills("encoder", tmp_path, 2) == "same\n"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["joint", "encoder", "generator", "export"])
def test_ten_kills_change_no_bit_and_leave_no_half_file(kind, tmp_path):
    assert after_kills(kind, tmp_path, 10) == "same\n"
