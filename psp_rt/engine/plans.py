"""TensorRT plans inside an engine file, and which of them fits a machine.

A plan runs only where it was built, or where its options allow. TensorRT notices a mismatch late and may
crash the process, so every plan has a record next to it, which is read first:

    plans/<target>/record.json           the machine, the options, and the SHA-256 of every source
    plans/<target>/encoder.plan          image -> codes; absent in a generator-only engine
    plans/<target>/mapping.plan          z -> w
    plans/<target>/generator.plan        codes -> image

A plan is machine code: it is only as trustworthy as its source. The record guards against mistakes, not
against malice.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ..errors import FormatError, PlanError
from .fields import Fields

if TYPE_CHECKING:
    from .reader import EngineFile

RECORD = "record.json"
MAX_RECORD = 1 << 16  # bytes
MAX_TEXT = 200  # characters
MAX_BATCH = 4096
LIBRARIES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}
AMPERE = (8, 0)


@dataclass(frozen=True, kw_only=True)
class PlanTarget:
    """What a plan depends on.

    Args:
        system: "Linux x86_64".
        library: "tensorrt" or "tensorrt_rtx".
        version: The library's full version: "10.13.3.9".
        gpu: "NVIDIA H200"; empty if the plan was built without a GPU.
        compute_capability: "9.0".
        driver: The driver's CUDA version, for display only.
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
        machine: What they were built for.
        precision: "fp16" or "fp32".
        min_batch: The smallest batch that the plans accept.
        opt_batch: The batch that they are optimized for.
        max_batch: The largest batch.
        version_compatible: They run on later versions with the same major number.
        hardware_compatible: They run on other GPUs, Ampere or newer.
        sources: SHA-256 of the graphs and weights that they were built from, by member.
        parity: How close they are to the portable graphs; empty if not measured.
    """

    machine: PlanTarget
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
            FormatError: It is not JSON, or a field is missing or of another type.
        """
        fields = Fields.parse(data, source=name, remedy="build the plan again")
        machine = fields.group("machine")
        names = (field.name for field in dataclasses.fields(PlanTarget))
        return PlanRecord(
            machine=PlanTarget(**{name: machine.text(name, longest=MAX_TEXT) for name in names}),
            precision=fields.text("precision", longest=MAX_TEXT),
            min_batch=fields.whole("min_batch", 1, MAX_BATCH),
            opt_batch=fields.whole("opt_batch", 1, MAX_BATCH),
            max_batch=fields.whole("max_batch", 1, MAX_BATCH),
            version_compatible=fields.flag("version_compatible"),
            hardware_compatible=fields.flag("hardware_compatible"),
            sources=fields.group("sources").texts(longest=MAX_TEXT),
            parity=fields.group("parity").numbers(),
        )


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


def choose(engine: EngineFile, machine: PlanTarget) -> str:
    """Return the target whose plans fit a machine; plans built for exactly this machine come first.

    Raises:
        PlanError: None fits; the message names both machines and the build command.
    """
    known = records(engine)
    obstacles = {target: obstacle(record, machine, engine) for target, record in known.items()}
    fitting = [target for target, reason in obstacles.items() if not reason]
    if fitting:
        return max(fitting, key=lambda target: _closeness(known[target], machine))
    command = f"psp-rt build {engine.path}"
    if not known:
        raise PlanError(f"{engine.path} has no TensorRT plan; build one for this machine with: {command}")
    reasons = "; ".join(f"{target}: {reason}" for target, reason in obstacles.items())
    raise PlanError(
        f"{engine.path} has no plan for this machine, {machine}. {reasons}. Build one with: {command}"
    )


def obstacle(record: PlanRecord, machine: PlanTarget, engine: EngineFile) -> str:
    """Return why the plans cannot be used on a machine; empty if they can."""
    built = record.machine
    for name, sha256 in record.sources.items():
        member = engine.manifest.members.get(name)
        if member is None and engine.manifest.stripped:
            continue
        if member is None or member.sha256 != sha256:
            return f"it was built from a different {name} than the one in this engine"
    if built.system != machine.system or built.library != machine.library:
        return f"it was built for {built}"
    if not _version_fits(record, machine) or not _gpu_fits(record, machine):
        return f"it was built for {built}"
    return ""


def _closeness(record: PlanRecord, machine: PlanTarget) -> tuple[bool, ...]:
    """Return a sort key: plans that are also compatible with other machines are slower."""
    built = record.machine
    return (
        (built.gpu, built.compute_capability) == (machine.gpu, machine.compute_capability),
        not record.hardware_compatible,
        built.version == machine.version,
        not record.version_compatible,
    )


def read_plan(engine: EngineFile, target: str, name: str) -> memoryview:
    """Return the bytes of a plan that `choose` returned; its hash is checked.

    Raises:
        FormatError: It is missing, cut off or changed.
    """
    return engine.view(f"plans/{target}/{name}.plan")


def _version_fits(record: PlanRecord, machine: PlanTarget) -> bool:
    built, here = _numbers(record.machine.version), _numbers(machine.version)
    return built == here or (record.version_compatible and built[:1] == here[:1] and built <= here)


def _gpu_fits(record: PlanRecord, machine: PlanTarget) -> bool:
    built, here = record.machine, machine
    if record.hardware_compatible:
        return _numbers(here.compute_capability) >= AMPERE
    if here.compute_capability not in built.compute_capability.split("+"):
        return False
    return built.library == "tensorrt_rtx" or built.gpu == here.gpu  # RTX finishes the plan on the machine


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version; a packager's ending, as in 10.13.3.9.post1, is none of them."""
    release = re.match(r"\d{1,9}(?:\.\d{1,9})*", version)
    return tuple(map(int, release[0].split("."))) if release else ()
