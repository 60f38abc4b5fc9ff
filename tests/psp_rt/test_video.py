"""A film through a model: its faces change; its times, sound and colors stay; it plays whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from click.testing import CliRunner

av = pytest.importorskip("av")

from psp_rt import InputError, OutputError, StyleMix, Translator, video  # noqa: E402
from psp_rt.cli.main import main  # noqa: E402
from tests.messages import assert_says  # noqa: E402
from tests.models import films, tiny_engine  # noqa: E402
from tests.models.films import BLUE, GRAY, RED, DiscFinder, discs  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::psp_rt.InputWarning")  # the tiny model is not square
ROOT = Path(__file__).parents[2]
VARIABLE = [*range(0, 1000, 40), *range(1000, 2300, 125)]  # 25 frames a second, then 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A film of a red disc that moves, with ten frames without it, at a variable frame rate."""
    folder = tmp_path_factory.mktemp("films")
    pictures = [
        discs() if 8 <= number < 18 else discs((40 + 2 * number, 48, RED)) for number in range(len(VARIABLE))
    ]
    films.write(folder / "in.mp4", pictures, VARIABLE, options={"crf": "10"})
    return folder


@pytest.fixture(scope="module")
def tiny(engine_paths):
    with Translator(engine_paths["rgb"], device="cpu", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def translated(folder, tiny):
    """The film with its faces translated, and the report."""
    options = video.VideoOptions(faces="all", quality=10)
    report = video.translate(tiny, folder / "in.mp4", folder / "out.mp4", options, finder=DiscFinder())
    return folder / "out.mp4", report


def test_every_frame_keeps_its_exact_time(folder, translated):
    assert films.read(translated[0])[0] == films.read(folder / "in.mp4")[0]
    assert films.read(translated[0])[0] == [pytest.approx(time_ms / 1000) for time_ms in VARIABLE]


def test_sound_is_copied_bit_for_bit_and_stays_in_step(folder, translated):
    assert films.sound_packets(translated[0]) == films.sound_packets(folder / "in.mp4")
    np.testing.assert_allclose(films.clicks(translated[0]), [0, 1, 2], atol=0.01)


def test_faces_change_and_frames_without_one_do_not(folder, translated):
    before, after = films.read(folder / "in.mp4")[1], films.read(translated[0])[1]
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        difference = np.abs(old.astype(int) - new).mean()
        assert difference < 1.5 if 8 <= number < 18 else difference > 2
    assert translated[1].frames == len(VARIABLE)
    assert translated[1].with_faces == len(VARIABLE) - 10


def test_far_from_a_face_nothing_changes(folder, translated):
    before, after = films.read(folder / "in.mp4")[1], films.read(translated[0])[1]
    assert np.abs(before[0][:, 100:].astype(int) - after[0][:, 100:]).max() <= 6  # the codec's own


def test_with_faces_off_the_film_is_what_the_model_makes_of_whole_frames(folder, tiny, tmp_path):
    options = video.VideoOptions(faces="off", quality=1)
    video.translate(tiny, folder / "in.mp4", tmp_path / "out.mp4", options)
    times, pictures = films.read(tmp_path / "out.mp4")
    assert times == films.read(folder / "in.mp4")[0]
    assert pictures[0].shape == (tiny_engine.OUT_HEIGHT, tiny_engine.OUT_WIDTH, 3)


def test_side_by_side_shows_the_original_on_the_left(folder, tiny, tmp_path):
    options = video.VideoOptions(faces="all", side_by_side=True, quality=10)
    video.translate(tiny, folder / "in.mp4", tmp_path / "out.mp4", options, finder=DiscFinder())
    before, both = films.read(folder / "in.mp4")[1][3], films.read(tmp_path / "out.mp4")[1][3]
    assert both.shape == (96, 320, 3)
    assert np.abs(both[:, :160].astype(int) - before).mean() < 2
    assert np.abs(both[:, 160:].astype(int) - before).mean() > 2


def test_start_and_end_cut_pictures_and_sound_alike(folder, tiny, tmp_path):
    options = video.VideoOptions(faces="off", start=0.5, end=1.6)
    video.translate(tiny, folder / "in.mp4", tmp_path / "out.mp4", options)
    times, _ = films.read(tmp_path / "out.mp4")
    expected = [time_ms / 1000 - 0.5 for time_ms in VARIABLE if 500 <= time_ms < 1600]
    np.testing.assert_allclose([float(value) for value in times], expected, atol=1e-4)
    np.testing.assert_allclose(films.clicks(tmp_path / "out.mp4"), [0.5], atol=0.01)


@pytest.mark.parametrize(("rotation", "size"), [(90, (96, 160)), (180, (160, 96)), (270, (96, 160))], ids=str)
def test_a_film_that_says_it_lies_on_its_side_is_written_upright(tiny, tmp_path, rotation, size):
    picture = discs((20, 20, RED))
    films.write(tmp_path / "in.mp4", [picture] * 3, [0, 40, 80], rotation=rotation, sound=False)
    options = video.VideoOptions(faces="all", quality=5)
    nobody = DiscFinder()
    nobody.find = lambda pixels: []
    video.translate(tiny, tmp_path / "in.mp4", tmp_path / "out.mp4", options, finder=nobody)
    found = films.read(tmp_path / "out.mp4")[1][0]
    assert found.shape[1::-1] == size
    expected = np.rot90(picture, rotation // 90)  # as players show it
    assert np.abs(found.astype(int) - expected).mean() < 6


@pytest.mark.parametrize(
    ("pix_fmt", "tags"),
    [
        ("yuv420p", {"color_range": 2, "colorspace": 1, "color_primaries": 1, "color_trc": 1}),
        ("yuv420p", {"color_range": 1, "colorspace": 9, "color_primaries": 9, "color_trc": 14}),
        ("yuv444p", {"color_range": 1, "colorspace": 6, "color_primaries": 6, "color_trc": 6}),
        ("yuv420p10le", {"color_range": 1, "colorspace": 1}),
    ],
    ids=["full range", "BT.2020", "4:4:4", "10 bits"],
)
def test_color_range_and_matrix_are_kept(tiny, tmp_path, pix_fmt, tags):
    pictures = [discs((60, 48, RED)), discs((62, 48, RED)), discs((64, 48, RED))]
    films.write(tmp_path / "in.mp4", pictures, [0, 40, 80], pix_fmt=pix_fmt, tags=tags, sound=False)
    options = video.VideoOptions(faces="all", quality=5)
    nobody = DiscFinder()
    nobody.find = lambda pixels: []
    video.translate(tiny, tmp_path / "in.mp4", tmp_path / "out.mp4", options, finder=nobody)
    with av.open(str(tmp_path / "out.mp4")) as found, av.open(str(tmp_path / "in.mp4")) as source:
        context, original = found.streams.video[0].codec_context, source.streams.video[0].codec_context
        assert context.pix_fmt.removeprefix("yuvj420p") in ("", "yuv420p")
        for name in tags:
            assert getattr(context, name) == getattr(original, name), name
    before, after = films.read(tmp_path / "in.mp4")[1][0], films.read(tmp_path / "out.mp4")[1][0]
    assert np.abs(before.astype(int) - after).mean() < 2


def test_a_face_is_pasted_in_the_films_own_colors(tmp_path, tiny):
    """RGB to YUV and back by the film's matrix and range: a face of the same pixels changes nothing."""
    tags = {"color_range": 2, "colorspace": 1}
    films.write(tmp_path / "in.mp4", [discs((80, 48, RED))] * 3, [0, 40, 80], tags=tags, sound=False)
    from psp_rt.video.frames import with_region
    from psp_rt.video.reader import Film

    with Film(tmp_path / "in.mp4") as film:
        frame = next(film.frames())
        rgb = film.colors.to_rgb(frame.picture)
        after = rgb.copy()
        after[40:60, 70:90] = (12, 200, 40)
        changed = with_region(frame.picture, rgb, after, 0, 0, film.colors)
        np.testing.assert_allclose(film.colors.to_rgb(changed)[42:58, 72:88], after[42:58, 72:88], atol=4)
        np.testing.assert_array_equal(film.colors.to_rgb(changed)[:30], rgb[:30])


def test_a_film_of_odd_size_gets_its_last_row_and_column_again(tiny, tmp_path):
    pictures = [discs((40, 40, RED), size=(101, 75))] * 3
    films.write(tmp_path / "in.mkv", pictures, [0, 40, 80], codec="ffv1", pix_fmt="yuv444p", sound=False)
    options = video.VideoOptions(faces="all")
    video.translate(tiny, tmp_path / "in.mkv", tmp_path / "out.mp4", options, finder=DiscFinder())
    assert films.read(tmp_path / "out.mp4")[1][0].shape == (76, 102, 3)


def test_each_person_can_have_a_style(tiny, tmp_path):
    pictures = [discs((40, 48, RED), (120, 48, BLUE), (120, 68, (GRAY,) * 3))] * 2  # the red one is larger
    films.write(tmp_path / "in.mp4", pictures, [0, 40], sound=False)
    styles = [StyleMix.random(seed, layers="1-") for seed in (1, 2)]

    def faces(styles):
        options = video.VideoOptions(faces="all", styles=styles, quality=1)
        video.translate(tiny, tmp_path / "in.mp4", tmp_path / "out.mp4", options, finder=DiscFinder())
        picture = films.read(tmp_path / "out.mp4")[1][0].astype(int)
        return picture[24:72, 16:64], picture[24:72, 96:144]

    both, first, second = faces(styles), faces(styles[:1]), faces(styles[1:])
    assert np.abs(both[0] - first[0]).mean() < np.abs(both[0] - second[0]).mean() / 4
    assert np.abs(both[1] - second[1]).mean() < np.abs(both[1] - first[1]).mean() / 4


def test_a_program_with_its_own_frames_gets_what_a_film_gets(tiny):
    frame = discs((60, 48, RED))
    before = frame.copy()
    live = video.LiveFaces(tiny, finder=DiscFinder(), styles=[StyleMix.random(1, layers="1-")])
    shown = [live(frame, seconds=step / 25) for step in range(3)]
    np.testing.assert_array_equal(frame, before)
    assert np.abs(shown[0].astype(int) - frame).mean() > 2
    np.testing.assert_array_equal(shown[0], shown[2])
    np.testing.assert_array_equal(shown[0][:, 120:], frame[:, 120:])
    assert live(discs(), seconds=1.0).shape == frame.shape


# Containers and codecs.


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "h264"), ("a.mov", "h264"), ("a.webm", "vp9"), ("a.mkv", "h265")], ids=str
)
def test_the_ending_chooses_the_container(folder, tiny, tmp_path, name, codec):
    options = video.VideoOptions(faces="all", sound=name != "a.webm", codec=codec, end=0.3)
    video.translate(tiny, folder / "in.mp4", tmp_path / name, options, finder=DiscFinder())
    with av.open(str(tmp_path / name)) as container:
        assert container.streams.video[0].codec_context.name == {"h265": "hevc"}.get(codec, codec)
    assert len(films.read(tmp_path / name)[0]) == 8


def test_what_cannot_be_written_is_refused_before_any_work(folder, tiny, tmp_path):
    source, options = folder / "in.mp4", video.VideoOptions(faces="off")
    for target, facts in (
        (tmp_path / "a.gif", [".gif", ".mp4", ".webm"]),
        (tmp_path / "no" / "a.mp4", ["no folder"]),
        (source, ["in.mp4 is an input"]),
        (tmp_path / "a.webm", ["aac", ".mkv", "--no-sound"]),
    ):
        with pytest.raises(OutputError) as found:
            video.translate(tiny, source, target, options)
        assert_says(found, *facts)
    with pytest.raises(OutputError) as found:
        video.translate(tiny, source, tmp_path / "a.webm", video.VideoOptions(faces="off", codec="h264"))
    assert_says(found, "h264", ".mp4", "vp9")
    assert sorted(path.name for path in tmp_path.iterdir()) == []


def test_an_error_before_the_first_frame_leaves_an_older_film_alone(folder, tiny, tmp_path):
    (tmp_path / "in.mp4").write_bytes(b"no film")
    (tmp_path / "out.mp4").write_bytes(b"older")
    with pytest.raises(InputError) as found:
        video.translate(tiny, tmp_path / "in.mp4", tmp_path / "out.mp4")
    assert_says(found, "in.mp4", "cut off")
    assert (tmp_path / "out.mp4").read_bytes() == b"older"


# Stopping.


def test_stopping_finishes_the_film(folder, tiny, tmp_path):
    stop = Event()

    def after_five(progress):
        if progress.frames == 5:
            stop.set()

    options = video.VideoOptions(faces="off")
    report = video.translate(
        tiny, folder / "in.mp4", tmp_path / "out.mp4", options, stop=stop, on_progress=after_five
    )
    assert report.stopped
    assert 5 <= report.frames == len(films.read(tmp_path / "out.mp4")[0]) < len(VARIABLE)


def test_an_error_in_the_middle_leaves_a_film_of_the_frames_before(folder, tiny, tmp_path):
    class Failing(DiscFinder):
        def find(self, pixels):
            if self.calls == 7:
                raise RuntimeError("the finder fails")
            return super().find(pixels)

    options = video.VideoOptions(faces="all")
    with pytest.raises(RuntimeError, match="the finder fails"):
        video.translate(tiny, folder / "in.mp4", tmp_path / "out.mp4", options, finder=Failing())
    assert len(films.read(tmp_path / "out.mp4")[0]) == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_ends_a_playable_film_with_one_line(engine_paths, tmp_path, number):
    pictures = (discs((40 + step % 80, 48, RED)) for step in range(3000))
    films.write(tmp_path / "in.mp4", pictures, range(0, 120000, 40), options={"preset": "ultrafast"})
    words = ["video", engine_paths["rgb"], "in.mp4", "out.mp4", "--faces", "off", "--threads", "1"]
    command = [sys.executable, "-m", "psp_rt", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        while process.poll() is None and not (tmp_path / "out.mp4").exists():
            time.sleep(0.02)
        process.send_signal(number)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number, error
    assert out.startswith("stopped; wrote out.mp4: ")
    assert len(out.splitlines()) == 1
    assert "Traceback" not in error
    assert 0 < len(films.read(tmp_path / "out.mp4")[0]) < 3000


# Resuming.


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "h264"), ("a.mkv", "h264"), ("a.mkv", "vp9"), ("a.mp4", "h265")], ids=str
)
def test_a_film_goes_on_where_it_ended(tiny, tmp_path, name, codec):
    moves = [discs((40 + step % 80, 48, RED)) for step in range(150)]
    source = films.write(tmp_path / "in.mp4", moves, range(0, 6000, 40))
    stop = Event()

    def after_seventy(progress):
        if progress.frames == 70:
            stop.set()

    options = video.VideoOptions(faces="all", codec=codec, resume=True)  # there is nothing yet: begins anew
    words = {"finder": DiscFinder()}
    first = video.translate(
        tiny, source, tmp_path / name, options, stop=stop, on_progress=after_seventy, **words
    )
    assert 70 <= first.frames < 120
    begun = films.read(tmp_path / name)[1]

    second = video.translate(tiny, source, tmp_path / name, options, **words)
    times, pictures = films.read(tmp_path / name)
    assert second.frames == len(times) == 150
    since_first = [float(value - times[0]) for value in times]
    np.testing.assert_allclose(since_first, np.arange(150) / 25, atol=0.0011)
    np.testing.assert_array_equal(pictures[:40], begun[:40])  # kept, not coded again
    late = np.subtract(films.clicks(tmp_path / name), range(6)) - float(times[0])
    assert np.abs(late).max() < 0.01
    assert films.sound_packets(tmp_path / name) == films.sound_packets(source)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({name, "in.mp4"})


def test_resuming_with_other_options_is_refused_and_changes_nothing(folder, tiny, tmp_path):
    options = video.VideoOptions(faces="all", end=0.5)
    video.translate(tiny, folder / "in.mp4", tmp_path / "a.mp4", options, finder=DiscFinder())
    before = (tmp_path / "a.mp4").read_bytes()
    options = video.VideoOptions(faces="all", resume=True, side_by_side=True)
    with pytest.raises(OutputError) as found:
        video.translate(tiny, folder / "in.mp4", tmp_path / "a.mp4", options, finder=DiscFinder())
    assert_says(found, "a.mp4", "other options", "remove it")
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


# The command.


def test_the_command_says_what_it_wrote(folder, engine_paths, tmp_path):
    words = [
        "video",
        engine_paths["rgb"],
        folder / "in.mp4",
        tmp_path / "out.mp4",
        "--profile",
        "--end",
        "0.5",
    ]
    done = CliRunner().invoke(main, list(map(str, words)))
    assert done.exit_code == 0, done.output
    assert_says(done.output, "13 frames", "translate", "sets the pace")


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["--start", "1:2:3:4"], ["1:2:3:4", "0:01:30.5"]),
        (["--start", "2", "--end", "1"], ["--end", "--start"]),
        (["--faces", "off", "--seeds", "1", "2", "--layers", "3-"], ["one"]),
        (["--start", "100"], ["no frames", "--start"]),
        (["--quality", "60"], ["60", "h264", "51"]),
    ],
    ids=str,
)
def test_wrong_options_are_messages(folder, engine_paths, tmp_path, words, facts):
    given = ["video", engine_paths["rgb"], folder / "in.mp4", tmp_path / "out.mp4", *words]
    done = CliRunner().invoke(main, list(map(str, given)))
    assert done.exit_code != 0
    assert_says(done.output, *facts)
    assert not (tmp_path / "out.mp4").exists()
