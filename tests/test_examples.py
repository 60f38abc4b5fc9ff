"""The examples that need no GPU run: a C++ program with psp_rt inside, and a GStreamer pipeline."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import cv2
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


# GStreamer.


@pytest.fixture(scope="module")
def python_with_gstreamer(tmp_path_factory):
    """Give a function that runs Python where GStreamer can be imported, and returns how it ended.

    Debian's module is for Debian's Python; another one of the same version takes it by a link.
    """
    folder, system = tmp_path_factory.mktemp("gi"), Path("/usr/lib/python3/dist-packages/gi")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    if importlib.util.find_spec("gi") is None and (system / f"_gi{suffix}").exists():
        (folder / "gi").symlink_to(system)
    paths = [str(ROOT), str(folder)]

    def run(*words):
        return subprocess.run(
            [sys.executable, *map(str, words)],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            timeout=120,
            check=False,
        )

    modules = "import gi.overrides._gi_gst; from gi.repository import GstBase, GstVideo"
    if run("-c", modules).returncode or not shutil.which("gst-inspect-1.0"):
        pytest.skip("needs GStreamer for this Python; the docstring of the example has the packages")
    return run


@pytest.fixture(scope="module")
def pipeline(python_with_gstreamer):
    """Give a function that runs the example."""
    return lambda *words: python_with_gstreamer(ROOT / "examples" / "gstreamer_pipeline.py", ENGINE, *words)


def film(path):
    """Return the size of a film's frames, and their times in milliseconds."""
    capture, times_ms, size = cv2.VideoCapture(str(path)), [], None
    while True:
        there, frame = capture.read()
        if not there:
            return size, times_ms
        size = frame.shape
        times_ms.append(capture.get(cv2.CAP_PROP_POS_MSEC))


def test_a_film_has_every_frame_at_its_time(pipeline, tmp_path):
    done = pipeline("--frames", 12, "--encode", tmp_path / "a.mp4")
    assert done.returncode == 0, done.stderr
    assert "12 frames; translating alone: " in done.stdout
    size, times_ms = film(tmp_path / "a.mp4")
    assert size == (128, 128, 3)
    np.testing.assert_allclose(times_ms, np.arange(12) * 1000 / 30, atol=0.1)


def test_a_film_can_be_the_source(pipeline, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "in.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 25, (98, 66))
    for level in range(0, 250, 50):
        writer.write(np.full((66, 98, 3), level, np.uint8))
    writer.release()
    done = pipeline("--source", tmp_path / "in.mp4", "--encode", tmp_path / "out.mp4")
    assert done.returncode == 0, done.stderr
    assert len(film(tmp_path / "out.mp4")[1]) == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--source", "missing.mp4"], "Error: source: Resource not found"),
        (["--frames", "2", "--encode", "missing/a.mp4"], "Error: filesink0: Could not open file"),
    ],
)
def test_errors_of_the_pipeline_are_messages(pipeline, tmp_path, words, message):
    encode = [] if "--encode" in words else ["--encode", tmp_path / "a.mp4"]
    done = pipeline(*words, *encode)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


IN_A_PROGRAM = """
import sys
import numpy as np
import gstreamer_pipeline as example
from gstreamer_pipeline import Gst
from psp_rt import Translator

class Same(example.PspRt):  # what the model gets, beside what it makes
    def do_transform(self, source, target):
        with source.map(Gst.MapFlags.READ) as read:
            seen.append((example.pixels(read, self._source).copy(), source.pts))
        return super().do_transform(source, target)

seen = []
translator = Translator(sys.argv[1])
if len(sys.argv) > 2:
    translator.close()
source = "videotestsrc num-buffers=3 pattern=ball ! video/x-raw, width=101, height=75, framerate=30/1"
sink = "video/x-raw, format=BGR ! appsink name=results sync=false"
pipeline = example.pipeline_of(source, Same(translator), sink)
results = pipeline.get_by_name("results")
if len(sys.argv) > 2:
    example.run(pipeline)
pipeline.set_state(Gst.State.PLAYING)
for _ in range(3):
    sample = results.emit("pull-sample")
    with sample.get_buffer().map(Gst.MapFlags.READ) as read:
        info = example.GstVideo.VideoInfo.new_from_caps(sample.get_caps())
        found = example.pixels(read, info).copy()
    frame, pts = seen.pop(0)
    assert frame.shape == (75, 101, 3) and np.ptp(frame) == 255
    np.testing.assert_array_equal(found, translator.run(frame))
    assert sample.get_buffer().pts == pts
    rate = sample.get_caps().get_structure(0).get_fraction("framerate")
    assert rate == (True, 30, 1), rate
assert results.emit("pull-sample") is None and results.get_property("eos")
pipeline.set_state(Gst.State.NULL)
print("same")
"""


def test_frames_of_any_width_are_those_that_python_gets_and_keep_their_time(python_with_gstreamer):
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'examples')!r})\n{IN_A_PROGRAM}"
    done = python_with_gstreamer("-c", code, ENGINE)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "same\n"


def test_an_error_of_psp_rt_is_one_of_the_pipeline(python_with_gstreamer):
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'examples')!r})\n{IN_A_PROGRAM}"
    done = python_with_gstreamer("-c", code, ENGINE, "closed")
    assert done.returncode == 1
    assert "this translator is closed; open the engine again (in PspRt)" in done.stderr
