"""Files that change or cannot be written: a running translator goes on; outputs are whole or not there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psp_rt import OutputError, Translator
from psp_rt.cli.jobs import save
from psp_rt.files import write_atomically
from tests.models import tiny_engine

ROOT = Path(__file__).parents[2]


def copied_over(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


def truncated(path: Path, other: Path) -> None:
    os.truncate(path, 0)


def truncated_and_grown(path: Path, other: Path) -> None:
    size = path.stat().st_size
    os.truncate(path, 0)
    os.truncate(path, 2 * size)


def renamed_over(path: Path, other: Path) -> None:
    shutil.copyfile(other, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def removed(path: Path, other: Path) -> None:
    path.unlink()


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be changed")
@pytest.mark.parametrize("change", [copied_over, truncated, truncated_and_grown, renamed_over, removed])
def test_an_open_translator_goes_on_when_its_file_changes(engine_paths, backend, tmp_path, picture, change):
    path = Path(shutil.copyfile(engine_paths["rgb"], tmp_path / "a.engine"))
    with Translator(path, device="cpu", backend=backend, threads=1) as translator:
        before = translator.run(picture)
        change(path, engine_paths["gray"])
        np.testing.assert_array_equal(translator.run(picture), before)
        with translator.clone() as other:
            np.testing.assert_array_equal(other.run(picture), before)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be changed")
@pytest.mark.parametrize("change", [copied_over, truncated_and_grown])
def test_the_demonstration_goes_on_when_its_file_changes(backend, tmp_path, change):
    path = Path(shutil.copyfile(ROOT / "models/sketch.engine", tmp_path / "a.engine"))
    with Translator(path, device="cpu", backend=backend, threads=1) as translator:
        before = translator.run(np.zeros((128, 128), np.uint8))
        change(path, ROOT / "models/inversion.engine")
        np.testing.assert_array_equal(translator.run(np.zeros((128, 128), np.uint8)), before)


# Each writes more than 8 KiB.
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8))
WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: write_atomically(path, "x" * 20_000),
    "picture.png": lambda path: save(PICTURE, path),
    "a.engine": tiny_engine.build,
}
WITH_A_LIMIT = """
import resource, sys
from pathlib import Path
from psp_rt import OutputError
from tests.psp_rt.test_files_in_use import WRITERS
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
for name, write in WRITERS.items():
    try:
        write(Path(sys.argv[1]) / name)
    except OutputError as error:
        assert name in str(error) and "cannot be written" in str(error), error
    else:
        sys.exit(f"{name} was written")
"""


def with_a_limit(folder: Path) -> None:
    """Write everything in a process whose files may have 8 KiB."""
    command = [sys.executable, "-c", WITH_A_LIMIT, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits of a file's size")
def test_a_limit_of_size_leaves_the_old_files_and_nothing_else(tmp_path):
    with_a_limit(tmp_path)
    assert list(tmp_path.iterdir()) == []
    for name in WRITERS:
        (tmp_path / name).write_text("old")
    with_a_limit(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(WRITERS, "old")


@pytest.fixture
def full_disk(tmp_path):
    """Return a folder on a disk that has 64 KiB, most of them taken."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.decode().strip()}")
    (folder / "taken").write_bytes(bytes(52 << 10))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("mount") is None, reason="needs Linux and mount")
def test_a_full_disk_leaves_the_old_files_and_nothing_else(full_disk):
    for name, write in WRITERS.items():
        (full_disk / name).write_text("old")
        with pytest.raises(OutputError, match=r"cannot be written.*[Nn]o space"):
            write(full_disk / name)
        assert (full_disk / name).read_text() == "old"
        (full_disk / name).unlink()
        assert [path.name for path in full_disk.iterdir()] == ["taken"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_that_is_not_writable_is_an_error_of_ours(tmp_path, name):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        WRITERS[name](tmp_path / name)
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_in_the_place_of_a_folder_is_an_error_of_ours(tmp_path, name):
    (tmp_path / "file").write_text("old")
    with pytest.raises(OutputError, match="cannot be written"):
        WRITERS[name](tmp_path / "file" / name)
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
@pytest.mark.parametrize("name", WRITERS)
def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path, name):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / name).write_text("old")
    (tmp_path / name).symlink_to(tmp_path / "real" / name)
    WRITERS[name](tmp_path / name)
    assert (tmp_path / name).is_symlink()
    assert (tmp_path / "real" / name).stat().st_size > 8192
    assert [path.name for path in (tmp_path / "real").iterdir()] == [name]
