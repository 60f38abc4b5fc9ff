"""Every block of README and of its pages runs, and every number in them comes from a committed result."""

import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import readme_tables
from tests.models import films, tiny_models
from trainer.losses.lpips import LpipsAlex

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "export/README.md", "psp_rt/GPU.md", "trainer/README.md", "benchmarks/README.md")
TEXTS = {page: (ROOT / page).read_text() for page in PAGES}
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", "\n".join(TEXTS.values()), re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
PYTHON = [text for language, text in BLOCKS if language == "python"]
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_WAIT_POLICY": "PASSIVE"}
SHELL = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines()]

pytestmark = pytest.mark.skipif(
    not (ROOT / "models" / "sketch.engine").is_file(),
    reason="the demonstration model is not in this checkout",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the files that README speaks of."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("sketch.engine", "inversion.engine", "drawing.png"):
        shutil.copy(ROOT / "models" / name, folder)
    shutil.copy(ROOT / "models" / "astronaut.jpg", folder / "snapshot.jpg")
    drawing = Image.open(folder / "drawing.png")
    drawing.rotate(5, fillcolor=255).save(folder / "friend.png")
    drawing.resize((400, 200)).save(folder / "wide.png")
    photo = Image.open(folder / "snapshot.jpg").convert("RGB").resize((320, 320))
    moves = [np.asarray(photo.rotate(step / 5)) for step in range(40)]
    films.write(folder / "film.mp4", moves, range(0, 2000, 50))
    (folder / "drawings").mkdir()
    drawing.save(folder / "drawings" / "one.png")
    rng = np.random.default_rng(0)
    for name in ("photos", "held-out"):
        (folder / name).mkdir()
        for number in range(3):
            noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            noise.resize((96, 96)).save(folder / name / f"{number}.png")
    noise.resize((300, 200)).save(folder / "photo.jpg")
    write_lpips(folder / "alexnet.pth", folder / "alex.pth")
    tiny_models.write_official(folder / "psp_ffhq_encode.pt")
    return folder


def write_lpips(features: Path, heads: Path) -> None:
    """Write drawn LPIPS weights in the two files that the trainer reads."""
    torch.manual_seed(0)
    lpips = LpipsAlex()
    convs = {f"features.{name}": tensor for name, tensor in lpips.convs.state_dict().items()}
    torch.save(convs, features)
    lines = {f"lin{n}.model.1.weight": torch.full((1, len(h), 1, 1), 0.1) for n, h in enumerate(lpips.heads)}
    torch.save(lines, heads)


def test_the_readme_has_blocks_to_run():
    assert len(PYTHON) >= 4
    assert len(SHELL) >= 8


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_a_python_block_runs(block, folder, monkeypatch):
    monkeypatch.chdir(folder)
    exec(compile(block, "README.md", "exec"), {})


def wait_for(address):
    for _ in range(600):
        try:
            with urllib.request.urlopen(address):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{address} does not answer")


@pytest.mark.slow
def test_the_shell_lines_run_one_after_another(folder, request):
    for line in SHELL:
        words = shlex.split(line)
        if words[:2] == ["psp-rt", "serve"]:
            server = subprocess.Popen(
                [sys.executable, "-m", "psp_rt", *words[1:]], cwd=folder, env=ENVIRONMENT
            )
            request.addfinalizer(server.terminate)
            wait_for("http://127.0.0.1:8000/readyz")
            continue
        if words[0] == "curl":
            if shutil.which("curl") is None:
                continue
            words.insert(1, "--fail-with-body")
        if words[0] == "psp-rt":
            words = [sys.executable, "-m", "psp_rt", *words[1:]]
        elif words[0] == "python":
            places = (str(ROOT / word) if word.startswith("models/") else word for word in words[1:])
            words = [sys.executable, *places]
        done = subprocess.run(
            words,
            cwd=folder,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_agree_with_the_committed_results(page):
    assert readme_tables.updated(TEXTS[page], folder=(ROOT / page).parent) == TEXTS[page]


@pytest.mark.parametrize("page", [*PAGES, "models/README.md"])
def test_every_link_leads_to_a_file(page):
    targets = LINK.findall((ROOT / page).read_text())
    assert targets
    for target in targets:
        assert (ROOT / page).parent.joinpath(target).exists(), target
