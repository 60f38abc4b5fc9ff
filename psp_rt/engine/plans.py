"""TensorRT plans inside an engine file, and which of them fits a machine.

A plan runs only where it was built, or where its options say; TensorRT finds that out late, and may
take the process with it. So every plan has a record beside it, which is read first:

    plans/<target>/record.json           the machine, the options, and the SHA-256 of every source
    plans/<target>/encoder.plan          image -> codes; absent in a generator-only engine
    plans/<target>/mapping.plan          z -> w
    plans/<target>/generator.plan        codes -> image

A plan is machine code: it is only as trustworthy as the machine that built it. The record guards against
mistakes, not against malice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import FormatError, PlanError
from .reader import EngineFile

RECORD = "record.json"
MAX_RECORD = 1 << 16  # bytes
LIBRARIES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}
AMPERE = (8, 0)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a plan depends on.

    Args:
        system: "Linux x86_64".
        library: "tensorrt" or "tensorrt_rtx".
        version: The library's, in full: "10.13.3.9".
        gpu: "NVIDIA H200"; empty where a plan was built without one.
        compute_capability: "9.0".
        driver: The CUDA version of the driver; told, never compared.
    """

    system: str
    library: str
    version: str
    gpu: str
    compute_capability: str
    driver: str

    def __str__(self) -> str:
        gpu = f"{self.gpu or 'GPUs'} of compute capability {self.compute_capability}"
        return f"{gpu} with {LIBRARIES.get(self.library, self.library)} {self.version} on {self.system}"


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """How the plans of one target were built.

    Args:
        machine: Where.
        precision: "fp16" or "fp32".
        min_batch: The smallest batch that the plans take.
        opt_batch: The batch that they are fastest at.
        max_batch: The largest.
        version_compatible: They run on later versions of the same major number.
        hardware_compatible: They run on other GPUs, Ampere or newer.
        sources: SHA-256 of the graphs and weights that they were built from, by member.
        parity: How close they are to the portable graphs; empty where that was not measured.
    """

    machine: Machine
    precision: str
    min_batch: int
    opt_batch: int
    max_batch: int
    version_compatible: bool
    hardware_compatible: bool
    sources: Mapping[str, str]
    parity: Mapping[str, float]

    @property
    def target(self) -> str:
        """Return the name of the folder of such plans.

        >>> record.target
        'nvidia-h200-sm90-tensorrt-10.13.3.9'
        """
        machine = self.machine
        capabilities = [f"sm{version.replace('.', '')}" for version in machine.compute_capability.split("+")]
        parts = [machine.gpu, *capabilities, machine.library, machine.version]
        joined = "-".join(part for part in parts if part).lower()
        return re.sub("[^a-z0-9.]+", "-", joined).strip("-.")[:80]

    def to_json(self) -> str:
        """Return the record as JSON text."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(data: bytes, name: str) -> PlanRecord:
        """Read a record.

        Raises:
            FormatError: It is no JSON, or a field is missing or of another type.
        """
        values = _parsed(data, name)
        machine = _checked(values.get("machine"), Machine, f"{name}: machine")
        record = _checked(values, PlanRecord, name)
        return PlanRecord(**(record | {"machine": Machine(**machine)}))


def records(engine: EngineFile) -> dict[str, PlanRecord]:
    """Return the records of all plans in an engine, by target."""
    found = {}
    for name in engine.names:
        match = re.fullmatch(rf"plans/([^/]+)/{re.escape(RECORD)}", name)
        if match:
            data = engine.view(name)
            if len(data) > MAX_RECORD:
                raise FormatError(
                    f"{engine.path}: {name} has {len(data)} bytes; expected at most {MAX_RECORD}"
                )
            found[match[1]] = PlanRecord.from_json(bytes(data), f"{engine.path}: {name}")
    return found


def choose(engine: EngineFile, machine: Machine) -> str:
    """Return the target whose plans fit a machine; those that were built for just this one come first.

    Raises:
        PlanError: None does; the message names both machines and the command that builds one.
    """
    known = records(engine)
    obstacles = {target: obstacle(record, machine, engine) for target, record in known.items()}
    fitting = [target for target, reason in obstacles.items() if not reason]
    if fitting:
        return max(fitting, key=lambda target: _closeness(known[target], machine))
    command = "psp-rt build " + ("--rtx " if machine.library == "tensorrt_rtx" else "") + str(engine.path)
    if not known:
        raise PlanError(f"{engine.path} holds no TensorRT plan; build one for this machine with: {command}")
    reasons = "; ".join(f"{target}: {reason}" for target, reason in obstacles.items())
    raise PlanError(
        f"{engine.path} holds no plan for this machine, {machine}. {reasons}. Build one with: {command}"
    )


def obstacle(record: PlanRecord, machine: Machine, engine: EngineFile) -> str:
    """Return why plans cannot be used on a machine; empty if they can."""
    built = record.machine
    for name, sha256 in record.sources.items():
        member = engine.manifest.members.get(name)
        if member is None and engine.manifest.stripped:
            continue
        if member is None or member.sha256 != sha256:
            return f"it was built from another {name} than this engine holds"
    if built.system != machine.system or built.library != machine.library:
        return f"it was built for {built}"
    if not _version_fits(record, machine) or not _gpu_fits(record, machine):
        return f"it was built for {built}"
    return ""


def _closeness(record: PlanRecord, machine: Machine) -> tuple[bool, ...]:
    """Return how well fitting plans suit a machine: compatible ones, built for others too, are slower."""
    built = record.machine
    return (
        (built.gpu, built.compute_capability) == (machine.gpu, machine.compute_capability),
        not record.hardware_compatible,
        built.version == machine.version,
        not record.version_compatible,
    )


def read_plan(engine: EngineFile, target: str, name: str) -> memoryview:
    """Return the bytes of a plan that `choose` has found fit; its hash is checked.

    Raises:
        FormatError: It is missing, cut off or changed.
    """
    return engine.view(f"plans/{target}/{name}.plan")


def _version_fits(record: PlanRecord, machine: Machine) -> bool:
    built, here = _numbers(record.machine.version), _numbers(machine.version)
    return built == here or (record.version_compatible and built[:1] == here[:1] and built <= here)


def _gpu_fits(record: PlanRecord, machine: Machine) -> bool:
    built, here = record.machine, machine
    if record.hardware_compatible:
        return _numbers(here.compute_capability) >= AMPERE
    if here.compute_capability not in built.compute_capability.split("+"):
        return False
    return built.library == "tensorrt_rtx" or built.gpu == here.gpu  # RTX finishes the plan on the machine


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d{1,9}", version))


def _parsed(data: bytes, name: str) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{name} is not valid JSON ({error}); build the plan again") from None
    if not isinstance(values, dict):
        raise FormatError(f"{name} holds a {type(values).__name__}; expected an object")
    return values


def _checked(values: Any, kind: type[Any], name: str) -> dict[str, Any]:
    """Return the fields of a dataclass from JSON, each of the type that it should have."""
    if not isinstance(values, dict):
        raise FormatError(f"{name} is no object; build the plan again")
    checks: dict[str, Callable[[Any], bool]] = {
        "str": _is_text,
        "int": lambda value: isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 4096,
        "bool": lambda value: isinstance(value, bool),
        "Machine": lambda value: isinstance(value, dict),
        "Mapping[str, str]": lambda value: _is_mapping(value, str),
        "Mapping[str, float]": lambda value: _is_mapping(value, (int, float)),
    }
    found = {}
    for field in fields(kind):
        if field.name not in values or not checks[str(field.type)](values[field.name]):
            raise FormatError(f"{name}: {field.name} is missing or no {field.type}; build the plan again")
        found[field.name] = values[field.name]
    return found


def _is_mapping(value: object, kind: type | tuple[type, ...]) -> bool:
    """Return whether it is an object of such values; its texts may reach a terminal."""
    return isinstance(value, dict) and all(
        isinstance(entry, kind) and all(map(_is_text, (key, entry) if isinstance(entry, str) else (key,)))
        for key, entry in value.items()
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= 200
