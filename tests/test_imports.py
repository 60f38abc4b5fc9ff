"""Imports follow the arrows: the trainer stands alone, the export on the trainer's networks."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = ("psp_rt", "export", "trainer", "benchmarks", "tests")
ALLOWED = {
    "trainer": (
        "trainer",
        "psp_rt.images",
        "psp_rt.files",
        "psp_rt.errors",
        "psp_rt.cli.group",
        "psp_rt.Translator",
    ),
    "export": ("export", "psp_rt", "trainer.networks", "trainer.checkpoint"),
}


def imported(file):
    """Return the modules of this project that a file imports, as full names."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in PROJECT}


# `psp_rt` itself is held by test_runtime_imports.py.
@pytest.mark.parametrize("package", ALLOWED)
def test_imports_follow_the_arrows(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    astray = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in files
        for name in imported(file)
        if not any(f"{name}.".startswith(f"{allowed}.") for allowed in ALLOWED[package])
    }
    assert astray == set()
