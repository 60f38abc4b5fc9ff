"""Which plan fits a machine: refused before TensorRT sees it, naming both machines and the command."""

import json
from dataclasses import replace

import pytest

from psp_rt import EngineFile, FormatError, PlanError
from psp_rt.engine.plans import PlanRecord, PlanTarget, choose, read_plan, records
from psp_rt.engine.writer import add_plans
from tests.models import tiny_engine

H200 = PlanTarget(
    system="Linux x86_64",
    library="tensorrt",
    version="10.13.3.9",
    gpu="NVIDIA H200",
    compute_capability="9.0",
    driver="13.0",
)
PLANS = {"encoder.plan": b"E" * 500, "mapping.plan": b"M" * 500, "generator.plan": b"G" * 500}


def record(path, machine=H200, **changes):
    with EngineFile.open(path) as file:
        members = file.manifest.members
    sources = {name: members[name].sha256 for name in ("encoder.onnx", "mapping.onnx", "generator.onnx")}
    plain = PlanRecord(
        machine=machine,
        precision="fp32",
        min_batch=1,
        opt_batch=1,
        max_batch=4,
        version_compatible=False,
        hardware_compatible=False,
        sources=sources,
        parity={},
    )
    return replace(plain, **changes)


@pytest.fixture
def engine(tmp_path):
    return tiny_engine.build(tmp_path / "a.engine")


def add(path, built):
    add_plans(path, built.target, {"record.json": built.to_json().encode(), **PLANS})
    return built.target


def chosen(path, machine):
    with EngineFile.open(path) as file:
        return choose(file, machine)


def test_a_plan_fits_where_it_was_built_whatever_the_driver(engine):
    target = add(engine, record(engine))
    assert chosen(engine, H200) == target
    assert chosen(engine, replace(H200, driver="13.2")) == target
    with EngineFile.open(engine) as file:
        assert bytes(read_plan(file, target, "mapping")) == PLANS["mapping.plan"]


def test_the_plan_that_fits_is_found_among_others(engine):
    add(engine, record(engine, replace(H200, gpu="Tesla P40", compute_capability="6.1", version="8.6.1")))
    target = add(engine, record(engine))
    add(engine, record(engine, replace(H200, version="11.0.0.114")))
    assert chosen(engine, H200) == target


@pytest.mark.parametrize("later", ["native", "compatible"])
def test_plans_for_just_this_machine_go_before_compatible_ones(engine, later):
    a100 = replace(H200, gpu="NVIDIA A100", compute_capability="8.0")
    older = replace(H200, version="10.9.0.34")
    native = record(engine)
    compatible = [
        record(engine, a100, hardware_compatible=True),
        record(engine, older, version_compatible=True),
    ]
    for built in [*compatible, native] if later == "native" else [native, *compatible]:
        add(engine, built)
    assert chosen(engine, H200) == native.target
    assert chosen(engine, replace(H200, gpu="NVIDIA L40S", compute_capability="8.9")) == compatible[0].target


def test_an_engine_without_plans_says_how_to_build_one(engine):
    with pytest.raises(PlanError, match=r"has no TensorRT plan; build one .*: psp-rt build .*a\.engine"):
        chosen(engine, H200)


@pytest.mark.parametrize(
    "changes",
    [
        {"gpu": "NVIDIA H100", "compute_capability": "9.0"},
        {"gpu": "Tesla P40", "compute_capability": "6.1"},
        {"version": "10.13.4.1"},
        {"version": "10.9.0.34"},
        {"version": "8.6.1"},
        {"system": "Windows AMD64"},
        {"library": "tensorrt_rtx"},
    ],
    ids=str,
)
def test_a_plan_from_another_machine_names_both_and_the_command(engine, changes):
    foreign = replace(H200, **changes)
    add(engine, record(engine, foreign))
    with pytest.raises(PlanError) as refused:
        chosen(engine, H200)
    message = str(refused.value)
    assert str(foreign) in message
    assert f"for this machine, {H200}" in message
    assert message.endswith(f"psp-rt build {engine}")


@pytest.mark.parametrize(
    ("version", "fits"), [("10.13.3.9", True), ("10.14.0.1", True), ("10.9.0.34", False), ("11.0.0.1", False)]
)
def test_a_version_compatible_plan_runs_on_later_minor_versions(engine, version, fits):
    target = add(engine, record(engine, version_compatible=True))
    machine = replace(H200, version=version)
    if fits:
        assert chosen(engine, machine) == target
    else:
        with pytest.raises(PlanError, match="has no plan for this machine"):
            chosen(engine, machine)


@pytest.mark.parametrize(
    ("capability", "fits"), [("8.0", True), ("8.9", True), ("12.0", True), ("7.5", False)]
)
def test_a_hardware_compatible_plan_runs_on_ampere_and_newer(engine, capability, fits):
    target = add(engine, record(engine, hardware_compatible=True))
    machine = replace(H200, gpu="another", compute_capability=capability)
    if fits:
        assert chosen(engine, machine) == target
    else:
        with pytest.raises(PlanError, match="has no plan for this machine"):
            chosen(engine, machine)


def test_a_plan_for_rtx_fits_every_gpu_of_its_compute_capabilities(engine):
    rtx = replace(H200, library="tensorrt_rtx", version="1.7.1.116", gpu="", compute_capability="8.9+12.0")
    target = add(engine, record(engine, rtx))
    assert target == "sm89-sm120-tensorrt-rtx-1.7.1.116"
    here = replace(rtx, gpu="NVIDIA GeForce RTX 5090", compute_capability="12.0")
    assert chosen(engine, here) == target
    with pytest.raises(PlanError, match=r"GPUs of compute capability 8\.9\+12\.0 with TensorRT for RTX"):
        chosen(engine, replace(here, compute_capability="8.6"))


def test_a_stale_plan_names_the_graph_that_changed(engine):
    sources = record(engine).sources | {"generator.onnx": "0" * 64}
    add(engine, record(engine, sources=sources))
    with pytest.raises(
        PlanError, match=r"built from a different generator\.onnx than the one in this engine.*psp-rt build"
    ):
        chosen(engine, H200)


# Damage.


def test_a_plan_cut_off_or_changed_is_refused_before_it_is_used(engine):
    target = add(engine, record(engine))
    data = engine.read_bytes()
    with EngineFile.open(engine) as file:
        at = file.span(f"plans/{target}/generator.plan").offset
    engine.write_bytes(data[: at + 100])
    with pytest.raises(FormatError, match="its end is missing"):
        EngineFile.open(engine)
    engine.write_bytes(data[: at + 100] + bytes(1) + data[at + 101 :])
    with EngineFile.open(engine) as file:
        assert choose(file, H200) == target
        with pytest.raises(FormatError, match=r"generator\.plan does not have the hash"):
            read_plan(file, target, "generator")


def test_a_record_without_its_plan_is_refused(engine):
    built = record(engine)
    add_plans(engine, built.target, {"record.json": built.to_json().encode()})
    with EngineFile.open(engine) as file, pytest.raises(FormatError, match=r"has no plans/.*/encoder\.plan"):
        read_plan(file, built.target, "encoder")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "is not valid JSON"),
        (b"[]", "holds a list; expected an object"),
        (b"[" * 50_000, "is not valid JSON"),
        (b" " * 70_000, "has 70000 bytes"),
        (b"{}", "machine"),
    ],
    ids=["cut off", "list", "deep", "huge", "empty"],
)
def test_a_record_that_is_no_record_is_refused(engine, content, reason):
    add_plans(engine, "x", {"record.json": content, **PLANS})
    with EngineFile.open(engine) as file, pytest.raises(FormatError, match=reason):
        records(file)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("precision", 16),
        ("max_batch", 0),
        ("max_batch", True),
        ("max_batch", 10**9),
        ("version_compatible", "yes"),
        ("sources", {"encoder.onnx": 1}),
        ("sources", {"\x1b[2J": "a"}),
        ("sources", {"encoder.onnx": "\x1b[2J"}),
        ("parity", {"\x1b[2J": 99.0}),
        ("parity", []),
        ("machine.version", None),
        ("machine.gpu", "\x1b[2J"),
        ("machine.gpu", "x" * 300),
    ],
)
def test_a_record_with_a_wrong_field_names_it(engine, field, value):
    values = json.loads(record(engine).to_json())
    *outer, name = field.split(".")
    (values[outer[0]] if outer else values)[name] = value
    add_plans(engine, "x", {"record.json": json.dumps(values).encode(), **PLANS})
    with EngineFile.open(engine) as file, pytest.raises(FormatError, match=rf"{name}[. ]"):
        records(file)
