"""Imports follow the arrows: lower floors know nothing of higher ones, and rooms have public faces."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("psp_rt", "export", "trainer", "benchmarks")

# psp_rt from the ground up. A room may import those of the floors below its own.
FLOORS = (
    ("errors",),
    ("files", "native", "paper", "pencil", "style", "streaming"),
    ("engine", "truncation"),
    ("cuda", "images"),
    ("hardware",),
    ("backends", "faces"),
    ("batching", "build", "drawings", "input_checks", "opening", "turns", "verification"),
    ("preparation", "translator"),
    ("serving", "video"),
    ("__init__", "cli"),
    ("__main__",),
)
# What other packages may import of psp_rt: these rooms, and the names of `psp_rt.__all__`.
PUBLIC = (
    *(
        "build",
        "build.build",
        "cli.build",
        "cli.group",
        "cli.info",
        "drawings",
        "engine",
        "errors",
        "faces",
        "files",
    ),
    *("hardware", "images", "pencil", "style", "video"),
)
INSIDERS = ("benchmarks.fuzzing.bodies", "benchmarks.fuzzing.engines")  # attacks what nobody else should see
OF_TRAINER = ("cli.group", "errors", "faces", "files", "images", "paper", "pencil")
LONGEST_CHAIN = 18


def module_of(file: Path) -> str:
    """Return a file's full module name."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(file): file for package in PACKAGES for file in (ROOT / package).rglob("*.py")}


@cache
def imported(module: str) -> frozenset[str]:
    """Return the modules of this project that a module imports, and "package.name" for names."""
    file = FILES[module]
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in executed(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return frozenset(name for name in found if name.partition(".")[0] in PACKAGES)


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a syntax tree, without imports that only type checkers see."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from executed(child)


def modules(module: str) -> set[str]:
    """Return the modules that a module imports."""
    names = (name if name in FILES else name.rpartition(".")[0] for name in imported(module))
    return {name for name in names if name in FILES and name != module}


def room_of(module: str) -> str:
    """Return the room of a module of psp_rt."""
    return [*module.split("."), "__init__"][1]


def test_every_room_of_psp_rt_has_a_floor():
    rooms = {room_of(module) for module in FILES if module.partition(".")[0] == "psp_rt"}
    assert rooms == {room for floor in FLOORS for room in floor}


def test_no_file_of_psp_rt_imports_from_its_own_floor_or_above():
    floor_of = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    astray = [
        f"{module} imports {other}"
        for module in FILES
        if module.partition(".")[0] == "psp_rt"
        for other in modules(module)
        if room_of(other) != room_of(module) and floor_of[room_of(other)] >= floor_of[room_of(module)]
    ]
    assert astray == []


@pytest.mark.parametrize("package", ["export", "trainer", "benchmarks"])
def test_other_packages_use_the_public_rooms_of_psp_rt(package):
    public = {f"psp_rt.{room}" for room in (OF_TRAINER if package == "trainer" else PUBLIC)} | {"psp_rt"}
    astray = [
        f"{module} imports {other}"
        for module in FILES
        if module.partition(".")[0] == package and module not in INSIDERS
        for other in modules(module)
        if other.partition(".")[0] == "psp_rt" and other not in public
    ]
    assert astray == []


def test_export_and_trainer_stand_on_their_own():
    below = {"trainer": (), "export": ("trainer.networks", "trainer.checkpoint")}
    astray = [
        f"{module} imports {name}"
        for module in FILES
        if (package := module.partition(".")[0]) in below
        for name in imported(module)
        if not name.startswith(("psp_rt", f"{package}.", *below[package])) and name != package
    ]
    assert astray == []


def test_chains_of_imports_are_short():
    @cache
    def chain(module: str) -> tuple[str, ...]:
        return max(((module, *chain(other)) for other in modules(module)), key=len, default=(module,))

    longest = max(map(chain, FILES), key=len)
    assert len(longest) <= LONGEST_CHAIN, " > ".join(longest)
