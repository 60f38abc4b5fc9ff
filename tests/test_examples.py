"""The examples that need no GPU run: a C++ program with psp_rt inside."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from psp_rt import Translator

ROOT = Path(__file__).parents[1]
ENGINE = ROOT / "models" / "inversion.engine"
WIDTH, HEIGHT = 64, 48


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """Build the program; give a function that feeds it and returns how it ended."""
    compiler = shutil.which("g++")
    python_config = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}-config")
    if compiler is None or not python_config.exists():
        pytest.skip("needs g++ and Python's headers (Debian: apt install g++ python3-dev)")
    flags = [str(python_config), "--includes", "--ldflags", "--embed"]
    found = subprocess.run(flags, capture_output=True, text=True, check=True).stdout.split()
    program = tmp_path_factory.mktemp("host") / "video_host"
    source = ROOT / "examples" / "video_host.cpp"
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", source, "-o", program, *found]
    subprocess.run(command, check=True)

    def run(data, engine=ENGINE):
        return subprocess.run(
            [program, sys.executable, engine, str(WIDTH), str(HEIGHT)],
            input=data,
            capture_output=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH, 3), np.uint8)


def test_a_cpp_program_gets_the_pictures_that_python_gets(host, frames):
    done = host(frames.tobytes())
    assert done.returncode == 0, done.stderr
    with Translator(ENGINE, color="rgb") as translator:
        expected = translator.run(frames)
    np.testing.assert_array_equal(np.frombuffer(done.stdout, np.uint8).reshape(expected.shape), expected)


def test_it_says_where_a_frame_is_cut_off(host, frames):
    done = host(frames.tobytes()[:-1])
    assert done.returncode == 1
    assert b"the input ends within frame 2; expected 64x48 RGB" in done.stderr


def test_it_passes_on_what_psp_rt_says(host, frames, tmp_path):
    done = host(frames.tobytes(), engine=tmp_path / "missing.engine")
    assert done.returncode == 1
    assert b"missing.engine cannot be read" in done.stderr
