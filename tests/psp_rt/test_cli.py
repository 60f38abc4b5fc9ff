"""The psp-rt command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from psp_rt import StyleMix, Translator
from psp_rt.cli import info as doctor
from psp_rt.cli.jobs import save
from psp_rt.cli.main import main
from psp_rt.images import load
from tests.messages import assert_says
from tests.models import tiny_engine
from tests.psp_rt.test_choice import NO_OPENVINO, ONE_GPU, WITH_CUDA, machine

MODEL = Path(__file__).parents[2] / "models" / "sketch.engine"

ROOT = Path(__file__).parents[2]


def psp_rt(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.fixture
def engine(engine_paths) -> Path:
    return engine_paths["rgb"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of three pictures, one of them corrupt, and a text file."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "c.jpg"):
        pixels = np.random.default_rng(ord(name[0])).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "b.png").write_bytes(b"corrupt")
    (folder / "notes.txt").write_text("hello")
    return folder


def test_run_writes_the_picture_and_says_so(engine, folder, tmp_path, translator):
    done = psp_rt("run", engine, folder / "a.png", "--output", tmp_path / "face.png", "--device", "cpu")
    assert (done.exit_code, done.stdout) == (0, f"wrote {tmp_path / 'face.png'}\n")
    np.testing.assert_array_equal(read(tmp_path / "face.png"), translator.run(read(folder / "a.png")))


def test_run_goes_on_past_an_unreadable_picture_and_says_so_at_the_end(engine, folder, tmp_path):
    done = psp_rt("run", engine, folder, folder / "no.png", "--output", tmp_path / "out")
    assert done.exit_code == 1
    assert done.stdout == f"wrote {tmp_path}/out/a.png\nwrote {tmp_path}/out/c.png\n"
    assert_says(done.stderr, "2 of 4", f"{folder}/b.png is not", f"{folder}/no.png", "No such file")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]


@pytest.mark.parametrize("seeds", [["1", "2", "3"], ["1,2,3"], ["1-3"], ["1", "2-3"]])
def test_seeds_give_a_result_each(engine, folder, tmp_path, translator, seeds):
    done = psp_rt(
        "run",
        engine,
        folder / "a.png",
        "--seeds",
        *seeds,
        "--layers",
        "4-6",
        "--alpha",
        "0.5",
        "--output",
        tmp_path / "out",
    )
    assert done.exit_code == 0, done.output
    style = StyleMix.random([1, 2, 3], layers="4-6", alpha=0.5)
    for seed, expected in zip((1, 2, 3), translator.run(read(folder / "a.png"), style=style), strict=True):
        np.testing.assert_array_equal(read(tmp_path / "out" / f"a-seed{seed}.png"), expected)


def test_seeds_may_stand_between_engine_and_input(engine, folder, tmp_path):
    done = psp_rt(
        "run", engine, "--layers", "4-", "--seeds", "1", "2", folder / "a.png", "-o", tmp_path / "f.png"
    )
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["f-seed1.png", "f-seed2.png"]


def test_a_single_seed_goes_to_the_file_that_was_named(engine, folder, tmp_path):
    psp_rt("run", engine, folder / "a.png", "--seeds", "7", "--layers", "4-", "-o", tmp_path / "f.png")
    assert [path.name for path in tmp_path.glob("*.png")] == ["f.png"]


def test_a_style_may_come_from_another_picture(engine, folder, tmp_path, translator):
    done = psp_rt(
        "run",
        engine,
        folder / "a.png",
        "--style-from",
        folder / "c.jpg",
        "--layers",
        "-3",
        "-o",
        tmp_path / "f.png",
    )
    assert done.exit_code == 0, done.output
    style = StyleMix(translator.encode(folder / "c.jpg"), layers="1-3")
    np.testing.assert_array_equal(
        read(tmp_path / "f.png"), translator.run(read(folder / "a.png"), style=style)
    )


def test_run_says_which_layers_it_mixes(folder, tmp_path):
    asked = ("run", MODEL, folder / "a.png", "--output", tmp_path / "x.png", "--seeds", "1")
    assert "mixes layers 3-12 of 12; --layers chooses others\n" in psp_rt(*asked).stderr
    assert "mixes layers 2-3 of 12\n" in psp_rt(*asked, "--layers", "2-3").stderr


def test_layers_that_cannot_be_are_refused_before_the_engine_is_opened(folder, tmp_path):
    refused = psp_rt("run", "no.engine", folder, "--output", tmp_path, "--seeds", "1", "--layers", "two")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "layers is 'two'; expected the paper's layers" in refused.stderr


@pytest.mark.parametrize(
    ("given", "hint"),
    [("https://example.org/a.png", "download it first"), ("-", "not read from standard input")],
)
def test_pictures_are_read_from_files_alone(engine, tmp_path, given, hint):
    refused = psp_rt("run", engine, given, "--output", tmp_path / "x.png")
    assert refused.exit_code == 1
    assert hint in refused.stderr


def test_an_interrupted_folder_says_what_is_written(engine, folder, tmp_path, monkeypatch):
    pictures = iter([load(folder / "a.png")])

    def next_or_interrupt(path: Path) -> Image.Image:
        for picture in pictures:
            return picture
        raise KeyboardInterrupt

    monkeypatch.setattr("psp_rt.cli.run.load", next_or_interrupt)
    done = psp_rt("run", engine, folder, "--output", tmp_path / "out")
    assert done.exit_code == 130
    assert "interrupted; 1 of 3 pictures are written" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_an_interrupt_while_the_engine_opens_is_a_word(engine, folder, tmp_path, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("psp_rt.cli.run.Translator", interrupted)
    done = psp_rt("run", engine, folder / "a.png", "--output", tmp_path / "x.png")
    assert (done.exit_code, done.output) == (130, "interrupted\n")


def test_couple_puts_the_input_beside_the_result(engine, folder, tmp_path, translator):
    psp_rt("run", engine, folder / "a.png", "--couple", "-o", tmp_path / "f.png")
    both, source = read(tmp_path / "f.png"), read(folder / "a.png")
    np.testing.assert_array_equal(both[:, :30], source)
    np.testing.assert_array_equal(both[:, 30:], enlarged(translator.run(source), height=20))


def enlarged(picture: np.ndarray, *, height: int) -> np.ndarray:
    """Return a result as --couple shows it beside a taller input."""
    width = round(picture.shape[1] * height / picture.shape[0])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--seeds", "1", "--style-from", "x.png"], "--style-from and --seeds are both given; choose one"),
        (["--layers", "4-"], "--layers and --alpha need a style; add --style-from IMAGE or --seeds 1 2 3"),
        (["--alpha", "0.5"], "--layers and --alpha need a style"),
        (["--seeds", "1", "--alpha", "2"], "2.0 is not in the range 0<=x<=1"),
        (["--seeds", "x"], "'x'; expected at most 1000 numbers, such as 1 2 3 or 1-3"),
        (["--seeds", "1-99999999"], "expected at most 1000 numbers"),
        (["--seeds", "1"], "layers '8-' go beyond this model's 6 layers; expected 1-6"),
        (["--seeds", "1", "--layers", "x"], "layers is 'x'; expected the paper's layers"),
        (["--device", "gpu"], "device is 'gpu'; expected 'auto', 'cpu', 'cuda' or 'cuda:N'"),
    ],
)
def test_options_that_mean_nothing_are_refused(engine, folder, tmp_path, options, reason):
    done = psp_rt("run", engine, folder / "a.png", "-o", tmp_path / "f.png", *options)
    assert done.exit_code != 0
    assert reason in done.stderr
    assert "Traceback" not in done.output
    assert not (tmp_path / "f.png").exists()


def test_several_pictures_never_go_into_a_folder_named_like_a_picture(engine, folder, tmp_path):
    done = psp_rt("run", engine, folder / "a.png", folder / "c.jpg", "--output", tmp_path / "x.png")
    assert done.exit_code == 1
    assert "x.png names one file, but there is more than one picture; give a folder, such as" in done.stderr
    assert not (tmp_path / "x.png").exists()


def test_run_says_on_stderr_what_it_runs_on(engine, folder, tmp_path):
    done = psp_rt("run", engine, folder / "a.png", "-o", tmp_path / "x.png", "--device", "cpu")
    assert done.stderr.startswith(f"{engine} runs on cpu, ")


def test_an_input_is_never_overwritten(engine, folder):
    before = (folder / "a.png").read_bytes()
    for output in (folder / "a.png", folder, f"{folder}/../in/a.png"):
        done = psp_rt("run", engine, folder / "a.png", "-o", output)
        assert done.exit_code == 1
        assert "is an input and would be overwritten; choose another --output" in done.stderr
    assert (folder / "a.png").read_bytes() == before


def test_pictures_of_one_stem_keep_their_endings_or_folders(engine, folder, tmp_path):
    Image.open(folder / "a.png").save(folder / "c.png")
    (folder / "b.png").unlink()
    other = tmp_path / "other"
    other.mkdir()
    Image.open(folder / "a.png").save(other / "a.png")
    done = psp_rt("run", engine, folder, other / "a.png", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png"))
    assert written == ["c.jpg.png", "c.png.png", "in/a.png", "other/a.png"]


def test_a_folder_says_what_it_left_out_and_recursive_reads_all(engine, folder, tmp_path):
    (folder / "b.png").unlink()
    (folder / "sub").mkdir()
    Image.open(folder / "a.png").save(folder / "sub" / "d.tga")
    done = psp_rt("run", engine, folder, "-o", tmp_path / "out")
    assert_says(done.stderr, "1 file", "notes.txt", "1 folder", "--recursive")
    done = psp_rt("run", engine, folder, "--recursive", "-o", tmp_path / "all")
    assert (tmp_path / "all" / "sub" / "d.png").exists()
    assert "--recursive" not in done.stderr


def test_skip_existing_does_only_what_is_missing(engine, folder, tmp_path):
    (folder / "b.png").unlink()
    psp_rt("run", engine, folder / "a.png", "-o", tmp_path / "out/")
    before = (tmp_path / "out" / "a.png").stat().st_mtime_ns
    done = psp_rt("run", engine, folder, "--skip-existing", "-o", tmp_path / "out")
    assert_says(done.stderr, "skipped 1 of 2")
    assert done.stdout == f"wrote {tmp_path}/out/c.png\n"
    assert (tmp_path / "out" / "a.png").stat().st_mtime_ns == before


def test_a_name_of_the_longest_length_is_written(engine, folder, tmp_path):
    name = "n" * 251 + ".png"
    assert psp_rt("run", engine, folder / "a.png", "-o", tmp_path / name).exit_code == 0
    assert [path.name for path in tmp_path.glob("n*")] == [name]


def test_an_output_without_a_picture_format_is_refused(engine, folder, tmp_path):
    done = psp_rt("run", engine, folder / "a.png", "-o", tmp_path / "f.xyz")
    assert "f.xyz does not end like a picture format" in done.stderr


def test_an_output_that_cannot_be_written_is_an_error(engine, folder, tmp_path):
    done = psp_rt("run", engine, folder / "a.png", "-o", folder / "notes.txt" / "f.png")
    assert done.exit_code == 1
    assert "f.png cannot be written: " in done.stderr


def test_a_folder_without_pictures_is_refused(engine, tmp_path):
    (tmp_path / "none").mkdir()
    done = psp_rt("run", engine, tmp_path / "none", "-o", tmp_path / "out")
    assert "none holds no pictures" in done.stderr


def test_an_engine_without_an_encoder_takes_no_pictures(engine_paths, folder, tmp_path):
    done = psp_rt("run", engine_paths[None], folder, "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert "has no encoder, so it takes no pictures" in done.stderr


def test_a_label_model_runs_from_a_palette_picture(engine_paths, open_translator, tmp_path):
    ids = np.random.default_rng(0).integers(0, tiny_engine.LABELS, (16, 12), dtype=np.uint8)
    image = Image.fromarray(ids)
    image.putpalette(list(range(15)))
    image.save(tmp_path / "map.png")
    done = psp_rt("run", engine_paths["labels"], tmp_path / "map.png", "-o", tmp_path / "f.png", "--couple")
    assert done.exit_code == 0, done.output
    expected = open_translator("labels", color="rgb").run(ids)
    np.testing.assert_array_equal(read(tmp_path / "f.png")[:, 12:], enlarged(expected, height=16))


def test_a_damaged_engine_is_a_message_and_no_traceback(tmp_path, folder):
    (tmp_path / "bad.engine").write_bytes(b"bad")
    for command in (["info"], ["doctor"], ["run"]):
        more = [folder / "a.png", "-o", tmp_path / "f.png"] if command == ["run"] else []
        done = psp_rt(*command, tmp_path / "bad.engine", *more)
        assert done.exit_code == 1
        assert "bad.engine is not a usable engine: it is no zip" in done.stderr


def test_a_bug_keeps_its_traceback(engine, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("psp_rt.cli.run.save", lambda *_: 1 / 0)
    done = psp_rt("run", engine, folder / "a.png", "-o", tmp_path / "f.png")
    assert isinstance(done.exception, ZeroDivisionError)


def test_a_picture_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(self: Path, data: bytes) -> int:
        with open(self, "wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(Exception, match=r"a\.png cannot be written: No space left on device"):
        save(Image.new("RGB", (9, 9)), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_info_says_what_an_engine_holds(engine_paths):
    done = psp_rt("info", engine_paths["labels"])
    assert done.exit_code == 0
    for line in (
        "Model",
        "  task                     test",
        "  takes                    labels 0-4, 16 x 12 (height x width), others resized: nearest",
        "  gives                    rgb, 10 x 14",
        "  styles                   6 rows of 8",
        "Made from",
        "  source                   tests/models/tiny_engine.py",
    ):
        assert line in done.stdout.splitlines()
    assert "TensorRT plans" not in done.stdout  # there are none


def test_info_says_where_an_engine_runs_and_how_close_it_is_to_its_checkpoint():
    done = psp_rt("info", MODEL)
    lines = done.stdout.splitlines()
    with Translator(MODEL) as translator:
        taken = f"{translator.device} with {translator.backend}, {translator.precision}: "
    assert any(line.startswith(f"  auto uses                {taken}") for line in lines)
    assert any(
        re.fullmatch(r"  pictures, FP32           at most [01] gray levels, \d\d\.\d dB", line)
        for line in lines
    )


def test_info_gives_the_manifest_as_json(engine):
    manifest = json.loads(psp_rt("info", engine, "--json").stdout)
    assert manifest["format"] == "psp_rt.engine"
    assert manifest["input"] == {
        "kind": "rgb",
        "height": 16,
        "width": 12,
        "labels": None,
        "resize": "bilinear",
    }


def test_doctor_says_what_auto_takes_and_tries_an_engine(engine):
    done = psp_rt("doctor", engine)
    assert done.exit_code == 0
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert {"python", "onnxruntime", "openvino", "providers", "bf16", "driver", "threads", "engine"} <= set(
        lines
    )
    assert "auto uses" in done.stdout
    assert "first picture made in" in lines["engine"]


@pytest.mark.parametrize(
    ("providers", "installed", "fault"),
    [
        (None, [], "ONNX Runtime is not installed: "),
        (
            ("CPUExecutionProvider",),
            ["onnxruntime"],
            "a GPU, but ONNX Runtime has no CUDA provider: ",
        ),
        (
            ("CPUExecutionProvider",),
            ["onnxruntime", "onnxruntime-gpu"],
            "are both installed and hide each other: ",
        ),
    ],
)
def test_doctor_gives_the_command_that_mends_it(providers, installed, fault):
    (line,) = doctor.faults(machine(driver=ONE_GPU, providers=providers), dict.fromkeys(installed, "1.23"))
    assert fault in line
    assert "pip install --force-reinstall 'psp_rt[cuda]'" in line


def test_doctor_names_an_openvino_that_is_missing_or_broken_where_it_would_be_faster():
    (line,) = doctor.faults(machine(openvino=NO_OPENVINO), {"onnxruntime": "1.23"})
    assert line == f"{NO_OPENVINO.problem}: models on the CPU would run faster"
    assert doctor.faults(machine(openvino=NO_OPENVINO, processor="arm64"), {"onnxruntime": "1.23"}) == []


def test_doctor_finds_no_fault_where_there_is_none():
    assert doctor.faults(machine(driver=ONE_GPU, providers=WITH_CUDA), {"onnxruntime-gpu": "1.23"}) == []
    assert doctor.faults(machine(), {"onnxruntime": "1.23"}) == []
    assert doctor.faults(machine(providers=None), {"openvino": "2026.4"}) == []


def test_the_command_runs_as_a_module():
    command = [sys.executable, "-m", "psp_rt", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.startswith("psp-rt, version ")
