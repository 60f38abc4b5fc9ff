"""Translators in other processes: forked children and pickling get a message, and nothing hangs."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from psp_rt import PspError, Translator
from tests.messages import assert_says
from tests.models import tiny_engine

ROOT = Path(__file__).parents[2]
# Forks with an open translator; the child must say why it cannot use it, and end by itself and in time.
FORKS = """
import os, sys, warnings
import numpy as np
import psp_rt
warnings.simplefilter("ignore", DeprecationWarning)
translator = psp_rt.Translator(sys.argv[1], backend=sys.argv[2], threads=2)
picture = np.zeros((16, 12, 3), np.uint8)
translator.run(picture)
child = os.fork()
if child == 0:
    try:
        translator.run(picture)
    except psp_rt.PspError as error:
        print(error, flush=True)
    if sys.argv[3] == "close":
        translator.close()
        translator.close()
    sys.exit(7)  # an end with destructors, unlike os._exit
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
print(translator.run(picture).shape, flush=True)
"""
WORKERS = """
import multiprocessing, sys
import numpy as np
import psp_rt

def work(number):
    try:
        translator.run(np.zeros((16, 12, 3), np.uint8))
    except psp_rt.PspError as error:
        with psp_rt.Translator(sys.argv[1], backend=sys.argv[2]) as own:
            return str(error), own.run(np.zeros((16, 12, 3), np.uint8)).shape

translator = psp_rt.Translator(sys.argv[1], backend=sys.argv[2])
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.map(work, [1], 1)[0])
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return tiny_engine.build(tmp_path_factory.mktemp("processes") / "a.engine")


def run(program, *words):
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.parametrize("end", ["close", "leave"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_forked_child_gets_a_message_and_ends(engine, backend, end):
    done = run(FORKS, engine, backend, end)
    assert done.returncode == 0, done.stderr
    assert_says(done.stdout, "opened in process", "open the engine in each worker", "(10, 14, 3)")


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_worker_opens_an_engine_of_its_own(engine):
    done = run(WORKERS, engine, "onnxruntime")
    assert done.returncode == 0, done.stderr
    assert_says(done.stdout, "open the engine in each worker", "(10, 14, 3)")


@pytest.mark.parametrize("call", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_translator_is_not_pickled_or_copied(engine, call):
    with Translator(engine) as translator, pytest.raises(PspError) as refused:
        call(translator)
    assert_says(refused, "pickled", "clone()", "open the engine in each worker")
