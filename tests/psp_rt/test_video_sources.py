"""Sources that are damaged, strange, or vanish: a clear message, and what was written plays."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path
from threading import Event

import numpy as np
import pytest

av = pytest.importorskip("av")

from psp_rt import InputError, Translator, video  # noqa: E402
from tests.messages import assert_says  # noqa: E402
from tests.models import films  # noqa: E402
from tests.models.films import RED, DiscFinder, discs  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::psp_rt.InputWarning")  # the tiny model is not square
ROOT = Path(__file__).parents[2]
PICTURES = [discs((40 + step, 48, RED)) for step in range(50)]
TIMES = range(0, 2000, 40)


@pytest.fixture(scope="module")
def tiny(engine_paths):
    with Translator(engine_paths["rgb"], device="cpu", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def broadcast(tmp_path_factory):
    """A film as broadcasts and streams are: MPEG-TS."""
    return films.write(tmp_path_factory.mktemp("films") / "in.ts", PICTURES, TIMES, options={"g": "10"})


def translate(tiny, source, target, **options):
    """Return the report and the notes before the work."""
    notes = []
    report = video.translate(
        tiny,
        source,
        target,
        video.VideoOptions(**{"faces": "all", **options}),
        finder=DiscFinder(),
        on_start=notes.extend,
    )
    assert len(films.read(target)[0]) == report.frames
    return report, notes


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
def test_a_broadcast_begins_at_zero_with_its_sound_in_step(broadcast, tiny, tmp_path, name):
    report, _ = translate(tiny, broadcast, tmp_path / name)
    times, _ = films.read(tmp_path / name)
    source, _ = films.read(broadcast)
    shift = times[0] - source[0]
    assert report.frames == 50
    assert max(abs(float(one - other - shift)) for one, other in zip(times, source, strict=True)) < 0.001
    late = np.subtract(films.clicks(tmp_path / name), films.clicks(broadcast)) - float(shift)
    assert np.abs(late).max() < 0.01


def test_a_film_that_is_cut_off_ends_there_and_says_so(tiny, tmp_path):
    films.write(tmp_path / "in.mkv", PICTURES, TIMES)
    data = (tmp_path / "in.mkv").read_bytes()
    (tmp_path / "in.mkv").write_bytes(data[: len(data) // 2])
    report, _ = translate(tiny, tmp_path / "in.mkv", tmp_path / "out.mp4")
    assert 5 < report.frames < 50
    assert_says(report.notes[0], "in.mkv", "cut off", "missing")


def test_damaged_packets_are_left_out_and_counted(broadcast, tiny, tmp_path):
    data, rng = bytearray(broadcast.read_bytes()), np.random.default_rng(0)
    for place in rng.integers(len(data) // 3, len(data) * 2 // 3, 30):
        data[place] ^= 0xFF
    (tmp_path / "in.ts").write_bytes(data)
    report, _ = translate(tiny, tmp_path / "in.ts", tmp_path / "out.mp4")
    assert 5 < report.frames <= 50
    assert_says("\n".join(report.notes), "damaged")


def test_sound_without_pictures_is_refused(tiny, tmp_path):
    with av.open(str(tmp_path / "a.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 48000
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    with pytest.raises(InputError) as found:
        translate(tiny, tmp_path / "a.m4a", tmp_path / "out.mp4")
    assert_says(found, "a.m4a", "only sound")


def test_a_stream_of_sound_without_a_packet_is_no_trouble(tiny, tmp_path):
    with av.open(str(tmp_path / "in.mp4"), "w") as container:
        stream, sound = container.add_stream("libx264", rate=25), container.add_stream("aac", rate=48000)
        stream.width, stream.height, stream.pix_fmt, sound.layout = 160, 96, "yuv420p", "mono"
        sound.codec_context.open()
        for number, picture in enumerate(PICTURES[:5]):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert translate(tiny, tmp_path / "in.mp4", tmp_path / "out.mp4")[0].frames == 5


def test_hdr_and_more_than_8_bits_are_announced(tiny, tmp_path):
    tags = {"color_range": 1, "colorspace": 9, "color_primaries": 9, "color_trc": 16}
    films.write(
        tmp_path / "in.mkv",
        PICTURES[:2],
        [0, 40],
        codec="ffv1",
        pix_fmt="yuv420p10le",
        tags=tags,
        sound=False,
    )
    report, notes = translate(tiny, tmp_path / "in.mkv", tmp_path / "out.mp4")
    assert report.frames == 2
    assert_says("\n".join(notes), "HDR", "PQ", "8 bits")


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4000, 2)], ids=str)
def test_films_of_strange_sizes_are_written(tiny, tmp_path, size):
    picture = np.full((*size[::-1], 3), 90, np.uint8)
    films.write(tmp_path / "in.mkv", [picture] * 2, [0, 40], codec="ffv1", pix_fmt="yuv444p", sound=False)
    translate(tiny, tmp_path / "in.mkv", tmp_path / "out.mp4")
    even = tuple(side + side % 2 for side in size)
    assert films.read(tmp_path / "out.mp4")[1][0].shape[1::-1] == even


@pytest.mark.slow
def test_a_film_of_8k_is_written(tiny, tmp_path):
    picture = np.full((4320, 7680, 3), 90, np.uint8)
    films.write(tmp_path / "in.mkv", [picture], [0], codec="mjpeg", pix_fmt="yuvj420p", sound=False)
    assert translate(tiny, tmp_path / "in.mkv", tmp_path / "out.mp4")[0].frames == 1


@pytest.mark.parametrize("name", ["no.mp4", "/dev/video77", "folder", "text.mp4", "tcp://127.0.0.1:9"])
def test_what_cannot_be_opened_is_named(tiny, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("text.mp4").write_text("no film")
    with pytest.raises(InputError) as found:
        translate(tiny, name, tmp_path / "out.mp4")
    assert_says(found, name)


def serve(data, *, reset=False, hold=0.0):
    """Send some data to one client, then break off or fall silent; return the address."""
    server = socket.create_server(("127.0.0.1", 0))

    def send():
        client, _ = server.accept()
        client.sendall(data)
        time.sleep(hold)
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        server.close()

    threading.Thread(target=send, daemon=True).start()
    return f"tcp://127.0.0.1:{server.getsockname()[1]}"


def test_a_stream_that_breaks_off_leaves_a_film_and_a_reason(broadcast, tiny, tmp_path):
    data = broadcast.read_bytes()
    address = serve(data[: len(data) // 2], reset=True, hold=0.5)
    report, _ = translate(tiny, address, tmp_path / "out.mp4")
    assert report.failed
    assert 10 < report.frames < 50
    assert_says(report.notes[0], address, "reading ended at", "reset")


def test_a_source_that_hangs_is_left_when_the_work_is_stopped(broadcast, tiny, tmp_path):
    data, stop = broadcast.read_bytes(), Event()
    address = serve(data[: len(data) // 2], hold=30)
    threading.Timer(1.5, stop.set).start()
    options = video.VideoOptions(faces="all")
    begin = time.monotonic()
    report = video.translate(tiny, address, tmp_path / "out.mp4", options, finder=DiscFinder(), stop=stop)
    assert report.stopped
    assert time.monotonic() - begin < 15  # the stream itself would be waited for longer
    assert len(films.read(tmp_path / "out.mp4")[0]) == report.frames > 5


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
def test_a_full_disk_is_an_error_and_what_is_written_plays(engine_paths, tmp_path):
    rng = np.random.default_rng(0)
    noise = (rng.integers(0, 256, (96, 160, 3), np.uint8) for _ in range(120))
    films.write(tmp_path / "in.mp4", noise, range(0, 4800, 40), options={"preset": "ultrafast"})
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (900_000, 900_000))\n"
        "from psp_rt.cli.main import main; main()"
    )
    words = ["video", engine_paths["rgb"], "in.mp4", "out.mp4", "--faces", "all", "--quality", "10"]
    done = subprocess.run(
        [sys.executable, "-c", limited, *map(str, words)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert_says(done.stderr, "out.mp4 cannot be written any further", "plays")
    assert "Traceback" not in done.stderr
    assert len(films.read(tmp_path / "out.mp4", cut_off=True)[0]) > 5


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="SIGKILL")
def test_a_kill_loses_the_last_seconds_only(engine_paths, tmp_path):
    pictures = (discs((40 + step % 80, 48, RED)) for step in range(3000))
    films.write(tmp_path / "in.mp4", pictures, range(0, 120000, 40), options={"preset": "ultrafast"})
    words = ["video", engine_paths["rgb"], "in.mp4", "out.mp4", "--faces", "off", "--threads", "1"]
    with subprocess.Popen(
        [sys.executable, "-m", "psp_rt", *map(str, words)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        written = tmp_path / "out.mp4"
        while process.poll() is None and not (written.exists() and written.stat().st_size > 20000):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    assert 40 < len(films.read(written, cut_off=True)[0]) < 3000
