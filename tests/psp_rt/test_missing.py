"""A command whose packages are missing says how to install them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("package", "missing", "message"),
    [
        ("export", "torch", "exporting needs torch, which is not installed; "),
        ("export", "onnx", "exporting needs onnx, which is not installed; "),
        ("trainer", "torch", "training needs torch, which is not installed; "),
        ("trainer", "cv2", "training needs cv2, which is not installed; "),
    ],
)
def test_a_missing_package_is_one_line_that_says_how_to_install_it(package, missing, message):
    code = (
        f"import runpy, sys; sys.modules[{missing!r}] = None; sys.argv = ['x', '--help']; "
        f"runpy.run_module({package!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    extras = {"export": "'.[cpu,export]'", "trainer": "'.[train]'"}[package]
    assert done.stderr == f"Error: {message}install it with: pip install {extras}\n"


def test_a_missing_module_of_our_own_keeps_its_traceback():
    from psp_rt.cli.group import require

    with pytest.raises(ModuleNotFoundError), require("this", install="that"):
        raise ModuleNotFoundError("no", name="psp_rt.gone")


@pytest.mark.parametrize("package", ["export", "trainer"])
def test_an_interrupt_while_packages_are_imported_is_a_word(package):
    code = (
        "import builtins, runpy, sys\n"
        "real = builtins.__import__\n"
        "def stopped(name, *rest, **more):\n"
        "    if name == 'torch': raise KeyboardInterrupt\n"
        "    return real(name, *rest, **more)\n"
        "builtins.__import__ = stopped\n"
        f"runpy.run_module({package!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "interrupted"
    assert "Traceback" not in done.stderr
