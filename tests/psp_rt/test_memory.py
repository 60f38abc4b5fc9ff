"""Too little memory is an error of its own, with what was asked for and what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from psp_rt import PspError
from psp_rt.errors import OutOfMemoryError, out_of_memory
from tests.messages import assert_says
from tests.models import tiny_engine

# A process whose memory is bounded just above what it has, and a batch that needs more.
STARVED = """
import resource, sys
import numpy as np
import psp_rt
translator = psp_rt.Translator(sys.argv[1], backend="onnxruntime", threads=1, max_batch=400_000)
codes = np.zeros((400_000, 6, 8), np.float32)
translator.generate(codes[:2])
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (260 << 20), -1))
try:
    translator.generate(codes)
except psp_rt.OutOfMemoryError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("error", "facts"),
    [
        (MemoryError(), ["too little memory", "running the generator"]),
        (RuntimeError("std::bad_alloc"), ["too little memory"]),
        (RuntimeError("Failed to allocate memory for requested buffer of size 536870912"), ["512 MiB"]),
        (MemoryError("Unable to allocate 2.33 GiB for an array"), ["2.33 GiB"]),
    ],
)
def test_what_the_runtimes_say_of_memory_is_one_error(error, facts):
    found = out_of_memory(error, "running the generator", "use a smaller batch")
    assert isinstance(found, OutOfMemoryError)
    assert isinstance(found, PspError)
    assert_says(str(found), *facts, "use a smaller batch")


def test_other_failures_are_not_about_memory():
    assert out_of_memory(RuntimeError("Invalid graph of size 4096"), "loading", "x") is None


@pytest.mark.skipif(sys.platform != "linux", reason="bounds a process's memory as Linux does")
def test_a_batch_beyond_the_memory_says_so(tmp_path):
    engine = tiny_engine.build(tmp_path / "a.engine", None)
    done = subprocess.run(
        [sys.executable, "-c", STARVED, str(engine)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert_says(done.stdout, "too little memory", "max_batch")
