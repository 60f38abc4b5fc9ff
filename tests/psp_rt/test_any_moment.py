"""A process may end, fork or close a translator at any moment, from any thread."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COUNT = int(os.environ.get("PSP_RT_TEST_MOMENTS", "25"))  # of each kind; 200 take half an hour

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")


def ended_otherwise(what: str, engine: Path, backend: str, seeds: range) -> str:
    """Return what `any_moment` prints about these seeds."""
    command = [sys.executable, "-m", "tests.psp_rt.any_moment", what, str(engine), backend]
    command += map(str, seeds)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "terminate called" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("what", ["end", "fork", "close"])
def test_a_few_moments_do_no_harm(engine_paths, backend, what):
    assert ended_otherwise(what, engine_paths["rgb"], backend, range(3)) == ""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["end", "fork", "close"])
def test_many_moments_do_no_harm(engine_paths, backend, what):
    assert ended_otherwise(what, engine_paths["rgb"], backend, range(100, 100 + COUNT)) == ""
