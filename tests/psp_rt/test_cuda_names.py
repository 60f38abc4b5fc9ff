"""NVIDIA's own bindings, which import without a GPU: what we call is there, and takes what we give."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from tests.stand_ins.cuda import FakeCuda

driver = pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings: pip install cuda-bindings")

SOURCES = sorted((Path(__file__).parents[2] / "psp_rt").rglob("*.py"))
FAKED = sorted(name.removeprefix("_") for name in vars(FakeCuda) if re.match(r"_cu[A-Z]", name))


def arguments(name):
    """Return how many arguments a call of the bindings takes, from the first line of its docstring."""
    parts = re.sub(r"\[[^\]]*\]", "", getattr(driver, name).__doc__.splitlines()[0])
    inside = re.fullmatch(r"\w+\((.*)\)\s*", parts)
    assert inside, parts
    return len([argument for argument in inside[1].split(",") if argument.strip()])


def test_every_call_of_ours_is_one_of_the_drivers_and_one_of_the_stand_in():
    names = set()
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and re.fullmatch(r"cu[A-Z]\w+", str(node.value)):
                names.add(node.value)
    assert len(names) > 25
    assert not [name for name in names if not hasattr(driver, name)]
    assert names <= set(FAKED)


@pytest.mark.parametrize("name", FAKED)
def test_the_stand_in_takes_as_many_arguments_as_the_driver(name):
    assert len(inspect.signature(getattr(FakeCuda, f"_{name}")).parameters) - 1 == arguments(name)


def test_the_constants_are_the_drivers():
    for file in SOURCES:
        for kind, value in re.findall(r"driver\.(CU\w+)\.(CU_\w+)", file.read_text()):
            assert hasattr(getattr(driver, kind), value), f"{file.name}: {kind}.{value}"
    assert int(driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY) == 2
    assert int(driver.CUresult.CUDA_ERROR_NOT_READY) == 600
    assert driver.CU_STREAM_LEGACY == 1
    assert driver.CU_STREAM_PER_THREAD == 2
    attribute = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED
    assert int(attribute) == FakeCuda.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED
    attributes = driver.CUpointer_attribute
    assert hasattr(attributes, "CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL")
    assert hasattr(attributes, "CU_POINTER_ATTRIBUTE_CONTEXT")


def test_without_a_driver_the_bindings_fail_as_we_expect():
    """Our message for a machine without libcuda rests on the kind of this error."""
    try:
        status = driver.cuInit(0)[0]
    except RuntimeError:
        return
    assert int(status) >= 0  # there is a driver here
