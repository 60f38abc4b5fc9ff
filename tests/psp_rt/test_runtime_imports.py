"""``import psp_rt`` is quick, and loads no framework and no GPU library."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

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
