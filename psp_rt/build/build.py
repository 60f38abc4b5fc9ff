"""Add TensorRT plans for one kind of machine to an engine file. Needs no PyTorch.

A plan is built on the GPU that runs it; TensorRT for RTX alone builds without one, for compute capabilities
that are named. Nothing of the engine is lost when a build fails: it is replaced whole, at the end.

The building by TensorRT itself, and the comparison after it, have not run on a GPU yet.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backends import Backend
from ..engine.manifest import Manifest
from ..engine.plans import RECORD, PlanRecord, PlanTarget
from ..engine.reader import EngineFile
from ..engine.writer import Content, add_plans
from ..errors import DeviceError, OutputError
from ..files import check_apart, check_writable, folder_beside
from ..hardware.probe import Driver, probe_driver
from ..hardware.tensorrt import this_machine
from .builder import BuildOptions, PlanBuilder, Progress, check_compute_capabilities, load_library
from .plan_parity import compare

OpenPlans = Callable[[dict[str, Path], Manifest], Backend]  # plans by graph -> what runs them


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What to build and where the results go.

    Args:
        engine: The engine file.
        options: For TensorRT.
        rtx: Build with TensorRT for RTX.
        output: Write another engine file; None to add to this one.
        strip_onnx: Leave the portable graphs out of the output.
        export_folder: Write the plans there too, for trtexec and other tools.
        timing_cache: A file with what is known of kernels' speed: read if it is there, then written.
    """

    engine: Path
    options: BuildOptions
    rtx: bool = False
    output: Path | None = None
    strip_onnx: bool = False
    export_folder: Path | None = None
    timing_cache: Path | None = None


def build(
    request: BuildRequest,
    *,
    open_plans: OpenPlans | None = None,
    open_portable: Callable[[EngineFile], Backend] | None = None,
    report: Callable[[str], None] = lambda step: None,
    progress: Progress | None = None,
) -> PlanRecord:
    """Build plans for all graphs of an engine and write them into it.

    Args:
        request: What to build.
        open_plans: Opens plans to compare them; None leaves the comparison out.
        open_portable: Opens the portable graphs to compare with.
        report: Called with each step that begins.
        progress: Called while TensorRT works, where its version can tell.

    Raises:
        DeviceError: There is no GPU to build on.
        BackendError: TensorRT is missing or gives up, or the plans compute something else.
        OutputError: The engine cannot be written; the old one is as it was.
    """
    output = request.output or request.engine
    if request.strip_onnx and request.output is None:
        raise OutputError("without its graphs the engine runs nowhere else; add --output OTHER.engine")
    if request.strip_onnx:
        check_apart(output, request.engine)
    check_writable(output)
    if request.timing_cache is not None:
        check_writable(request.timing_cache)
    if request.export_folder is not None:
        _check_folder(request.export_folder)
    trt, machine = prepare(request)
    with (
        EngineFile.open(request.engine) as engine,
        folder_beside(output, otherwise="It is as it was before") as folder,
    ):
        plans = _build_all(trt, engine, request, folder, report, progress)
        if engine.manifest.noise == "random":
            report("its noise is TensorRT's to draw: whether that is new at every run has not been tested")
        parity: dict[str, float] = {}
        if open_plans is not None and open_portable is not None:
            report("comparing the plans with the portable graphs")
            parity = compare(open_portable(engine), open_plans(plans, engine.manifest), engine.manifest)
        record = _record(machine, request.options, engine, parity)
        report(f"writing {output}")
        files: dict[str, Content] = {RECORD: record.to_json().encode()}
        files |= {f"{name}.plan": path for name, path in plans.items()}
        add_plans(request.engine, record.target, files, output=output, strip=request.strip_onnx)
        if request.export_folder is not None:
            _export(plans, record, request.export_folder)
    return record


def prepare(request: BuildRequest) -> tuple[Any, PlanTarget]:
    """Return the library to build with and what the plans will run on; quick, to be asked before long work.

    Raises:
        DeviceError: There is no GPU to build on.
        BackendError: The library is missing, or builds not for what is asked.
    """
    driver = probe_driver()  # first: TensorRT may take the process with it where there is no driver
    _check_gpu(driver, request)
    trt = load_library(rtx=request.rtx)
    check_compute_capabilities(trt, request.options.compute_capabilities)
    return trt, this_machine(trt, driver, request.options.compute_capabilities)


def graph_names(manifest: Manifest) -> dict[str, str]:
    """Return which graph a plan is built from, by the plan's name."""
    end = ".fp16" if manifest.precision == "fp16" else ""
    names = {"mapping": "mapping", "generator": f"generator{end}"}
    return names if manifest.input is None else {"encoder": f"encoder{end}", **names}


def _check_gpu(driver: Driver, request: BuildRequest) -> None:
    named = request.rtx and request.options.compute_capabilities
    if driver.problem and not named:
        raise DeviceError(
            f"a plan is built on the GPU that runs it, and there is none here: {driver.problem}. Run psp-rt "
            "build there; or build for an RTX card from here with: psp-rt build ENGINE --rtx "
            "--compute-capability 8.9"
        )


def _build_all(
    trt: Any,
    engine: EngineFile,
    request: BuildRequest,
    folder: Path,
    report: Callable[[str], None],
    progress: Progress | None,
) -> dict[str, Path]:
    cache_file = request.timing_cache
    cache = _read(cache_file) if cache_file is not None and cache_file.is_file() else b""
    builder = PlanBuilder(trt, request.options, timing_cache=cache)
    plans = {}
    for name, graph in graph_names(engine.manifest).items():
        report(f"building the {name}")
        plans[name] = folder / f"{name}.plan"
        plans[name].write_bytes(builder.build(builder.parse(engine, graph), progress=progress))
    engine.check_unchanged(
        during="by another program, perhaps another build, while its plans were built",
        mend="run the build again",
    )
    if cache_file is not None and builder.timing_cache:
        _write(cache_file, builder.timing_cache)
    return plans


def _read(cache_file: Path) -> bytes:
    try:
        return cache_file.read_bytes()
    except OSError as error:
        raise OutputError(
            f"the timing cache {cache_file} cannot be read: {error.strerror or error}"
        ) from error


def _record(
    machine: PlanTarget, options: BuildOptions, engine: EngineFile, parity: dict[str, float]
) -> PlanRecord:
    members = engine.manifest.members
    sources = [f"{graph}.onnx" for graph in graph_names(engine.manifest).values()]
    sources += [f"{name}.weights" for name in graph_names(engine.manifest) if f"{name}.weights" in members]
    smallest, best, largest = options.batches
    return PlanRecord(
        machine=machine,
        precision=engine.manifest.precision,
        min_batch=smallest,
        opt_batch=best,
        max_batch=largest,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        sources={name: members[name].sha256 for name in sources},
        parity=parity,
    )


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; give the name of a folder for the plans")


def _export(plans: dict[str, Path], record: PlanRecord, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be made: {error.strerror or error}. The engine has its plans; take them out "
            "of it with unzip"
        ) from error
    for name, path in plans.items():
        _write(folder / f"{name}.plan", path.read_bytes())
    _write(folder / RECORD, record.to_json().encode())


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
