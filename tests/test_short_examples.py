"""The short examples: a grid of styles, a film, and a server."""

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from psp_rt import StyleMix, Translator
from tests.models import tiny_engine

ROOT = Path(__file__).parents[1]
EXAMPLES, MODELS = ROOT / "examples", ROOT / "models"
SKETCH, DRAWING = MODELS / "sketch.engine", MODELS / "drawing.png"


def start(name, *words, **settings):
    command = [sys.executable, EXAMPLES / name, *map(str, words)]
    return subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, **settings
    )


def run(name, *words):
    with start(name, *words) as process:
        out, error = process.communicate(timeout=120)
    return process.returncode, out, error


@pytest.fixture(scope="module", autouse=True)
def this_tree():
    """Let the programs import the package beside them, as `pip install .` would."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        yield


@pytest.mark.parametrize("name", ["style_grid.py", "video_file.py", "http_server.py"])
def test_they_are_below_80_lines(name):
    assert len((EXAMPLES / name).read_text().splitlines()) < 80


# The grid.


def test_a_grid_has_a_row_for_each_seed_and_a_column_for_each_strength(tmp_path):
    words = ["--seeds", 4, 9, "--alphas", 0, 0.5, 1, "--layers", "3-"]
    code, out, error = run("style_grid.py", SKETCH, DRAWING, tmp_path / "grid.png", *words)
    assert code == 0, error
    assert "2 seeds, 3 strengths" in out
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (2 * 128, 3 * 128, 3)
    with Translator(SKETCH) as translator:
        for row, seed in enumerate((4, 9)):
            for column, alpha in enumerate((0, 0.5, 1)):
                style = StyleMix.random(seed, layers="3-", alpha=alpha)
                expected = np.asarray(translator.run(Image.open(DRAWING), style=style)).astype(int)
                found = grid[row * 128 : row * 128 + 128, column * 128 : column * 128 + 128]
                assert np.abs(found - expected).max() <= 1  # the batch has another size


def test_layers_that_the_model_has_not_are_an_error(tmp_path):
    code, _, error = run("style_grid.py", SKETCH, DRAWING, tmp_path / "grid.png", "--layers", "8-18")
    assert code == 1
    assert error.startswith("Error: layers '8-18' go beyond this model's 12 layers")


def test_a_grid_never_replaces_its_picture_and_says_what_cannot_be_written(tmp_path):
    shutil.copy(DRAWING, tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    code, _, error = run("style_grid.py", SKETCH, tmp_path / "a.png", tmp_path / "a.png")
    assert (code, (tmp_path / "a.png").read_bytes()) == (1, before)
    assert "a.png is the picture, and would be overwritten" in error
    code, _, error = run("style_grid.py", SKETCH, DRAWING, tmp_path / "no" / "a.png", "--layers", "3-")
    assert code == 1
    assert error.startswith("Error: ")
    assert "cannot be written" in error


# The film.


def write_film(path, levels):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 12, (80, 48))
    for level in levels:
        writer.write(np.full((48, 80, 3), level, np.uint8))
    writer.release()


def test_a_film_never_replaces_its_source_nor_a_film_by_nothing(tmp_path):
    write_film(tmp_path / "in.mp4", range(0, 250, 25))
    before = (tmp_path / "in.mp4").read_bytes()
    (tmp_path / "a.png").write_text("no picture")
    for source, reason in (("in.mp4", "is the source"), ("a.png", "is no film that OpenCV can read")):
        code, _, error = run("video_file.py", SKETCH, tmp_path / source, tmp_path / "in.mp4")
        assert code == 1
        assert reason in error
        assert (tmp_path / "in.mp4").read_bytes() == before


def test_a_film_keeps_its_frames_and_their_rate(tmp_path):
    write_film(tmp_path / "in.mp4", range(0, 250, 25))
    code, out, error = run("video_file.py", SKETCH, tmp_path / "in.mp4", tmp_path / "out.mp4")
    assert code == 0, error
    assert re.search(r"10 frames in \d+\.\d\d s: \d+\.\d a second; the film has 12 a second", out)
    capture = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 10
    assert capture.get(cv2.CAP_PROP_FPS) == 12
    assert capture.read()[1].shape == (128, 128, 3)


def test_what_is_no_film_is_an_error(tmp_path):
    (tmp_path / "in.mp4").write_bytes(b"no film")
    code, _, error = run("video_file.py", SKETCH, tmp_path / "in.mp4", tmp_path / "out.mp4")
    assert code == 1
    assert error.rstrip().endswith("in.mp4 is no film that OpenCV can read")
    assert not (tmp_path / "out.mp4").exists()


# The server.


@contextmanager
def serving(engine):
    """Start it; give its port and the process."""
    with start("http_server.py", engine, "--port", 0, "--workers", 2) as process:
        line = process.stdout.readline()
        try:
            yield re.match(r"http://[\d.]+:(\d+) on cpu", line)[1], process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server():
    with serving(SKETCH) as started:
        yield started


def post(server, body, path="/"):
    """Return the status, kind and content of an answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{server[0]}{path}", body)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read()


def health(server):
    return json.loads(post(server, None, "/health")[2])


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_pictures_posted_at_once_each_get_their_own_answer(server):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (64, 64), np.uint8) for _ in range(8)]
    before = health(server)["served"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda picture: post(server, png(picture)), pictures))
    with Translator(SKETCH, color="rgb") as translator:
        for picture, (status, kind, body) in zip(pictures, answers, strict=True):
            assert (status, kind) == (200, "image/png")
            np.testing.assert_array_equal(Image.open(io.BytesIO(body)), translator.run(picture))
    assert health(server)["served"] == before + 8
    assert health(server)["requests_per_second"] > 0


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"no picture", 400, "the body is no whole PNG, JPEG or WebP picture"),
        (DRAWING.read_bytes()[:500], 400, "the body is no whole PNG"),
        (b"", 400, "the body is no whole PNG"),
        (b"GIF89a" + bytes(20), 400, "the body is no whole PNG"),
    ],
)
def test_what_is_no_picture_is_refused(server, body, status, message):
    found, kind, content = post(server, body)
    assert (found, kind) == (status, "text/plain")
    assert content.decode().startswith(message)


@pytest.mark.parametrize(
    ("length", "status"), [("17000000", 413), ("9" * 5000, 413), (None, 411), ("-1", 413), ("a", 413)]
)
def test_a_body_is_bounded_before_it_is_read(server, length, status):
    connection = HTTPConnection("127.0.0.1", int(server[0]), timeout=20)
    connection.putrequest("POST", "/")
    if length is not None:
        connection.putheader("Content-Length", length)
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == status
    assert b"expected a Content-Length up to 16777216" in answer.read()
    connection.close()


def test_a_picture_that_the_model_does_not_take_is_refused_with_its_reason(tmp_path):
    with serving(tiny_engine.build(tmp_path / "a.engine", "labels")) as started:
        status, _, content = post(started, png(np.zeros((8, 8, 3), np.uint8)))
    assert status == 422
    assert content.startswith(b"a label map has one channel")


def test_an_engine_for_aligned_faces_looks_for_one():
    with serving(MODELS / "inversion.engine") as started:
        status, _, content = post(started, png(np.full((80, 120, 3), 200, np.uint8)))
    assert (status, content[:17]) == (422, b"no face was found")


def test_another_address_is_not_found(server):
    assert post(server, None, "/other")[0] == 404


def test_it_says_at_the_end_how_fast_it_was(server):
    process = server[1]
    served = health(server)["served"]
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=20)
    assert process.returncode == 0, error
    assert re.fullmatch(rf"{served} pictures, \d+\.\d\d a second\n", out)
    assert "Traceback" not in error


def test_a_server_that_cannot_start_says_why(tmp_path):
    for words in ((SKETCH, "--port", 99999), (tmp_path / "no.engine",)):
        code, _, error = run("http_server.py", *words)
        assert code == 1
        assert error.startswith("Error: ")
