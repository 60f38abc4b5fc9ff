"""``import psp_rt`` is quick, and loads no framework and no GPU library."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import psp_rt
from tests.messages import assert_says

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "onnx", "onnxruntime", "tensorrt", "cv2", "cuda", "pycuda", "click", "trainer", "export")
NEVER = {"torch", "onnx", "trainer", "export"}


def python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_import_loads_no_framework_and_no_gpu_library():
    assert python(f"import psp_rt, sys; print([name for name in {HEAVY} if name in sys.modules])") == "[]\n"


def test_import_takes_less_than_0_3_seconds():
    code = "import time; start = time.process_time(); import psp_rt; print(time.process_time() - start)"
    assert min(float(python(code)) for _ in range(4)) < 0.3  # its own time: others may be at work


def test_the_runtime_imports_neither_torch_nor_onnx_nor_the_rest_of_the_project():
    imported = set()
    for file in (ROOT / "psp_rt").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add((node.module or "").partition(".")[0])
    assert "numpy" in imported
    assert not imported & NEVER


def test_a_tiny_engine_runs_without_torch(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; from tests.models import tiny_engine; import psp_rt\n"
        f"path = tiny_engine.build(Path({str(tmp_path)!r}) / 'a.engine')\n"
        "translator = psp_rt.Translator(path, device='cpu')\n"
        "print(translator.generate(translator.sample(1)).shape)\n"
    )
    assert python(code) == "(10, 14, 3)\n"


# Types for users.

PROGRAM = """
import numpy as np
import numpy.typing as npt
from PIL import Image
import psp_rt

translator = psp_rt.Translator("sketch.engine", device="cpu", backend="auto", precision="fp32", color="rgb")
face: Image.Image = translator.run("drawing.png")
frame: npt.NDArray[np.uint8] = translator.run(np.zeros((8, 8, 3), np.uint8))
faces: list[Image.Image] = translator.run(["a.png", "b.png"])
for picture in translator.stream([Image.new("RGB", (8, 8))]):
    picture.save("out.png")
codes: npt.NDArray[np.float32] = translator.encode(face)
"""


@pytest.mark.slow
def test_a_users_program_type_checks_and_a_wrong_literal_does_not(tmp_path):
    (tmp_path / "right.py").write_text(PROGRAM)
    (tmp_path / "wrong.py").write_text(PROGRAM.replace('device="cpu"', 'device="gpu"'))
    command = [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={tmp_path}/cache", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert "right.py" not in done.stdout
    assert_says(done.stdout, "wrong.py:7", '"device"', "Literal['gpu']", "Found 1 error")


def test_dir_shows_the_public_names():
    assert dir(psp_rt) == sorted([*psp_rt.__all__, "drawings", "faces"])
