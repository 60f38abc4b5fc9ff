"""Add TensorRT plans for this machine's GPU to an engine file. Needs no PyTorch.

A plan is built on the GPU that runs it. The engine file is replaced as a whole at the end, so a failed build
leaves it as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..backends import open_backend
from ..backends.backend import Backend
from ..backends.tensorrt.backend import TensorRtBackend
from ..cuda.device import CudaDevice
from ..engine.manifest import Manifest
from ..engine.plans import RECORD, PlanRecord, PlanTarget
from ..engine.ports import graph_name, weights_member
from ..engine.reader import EngineFile
from ..engine.writer import Content, add_plans
from ..errors import BackendError, DeviceError, OutputError, PspError
from ..files import check_apart, check_writable, folder_beside, write_atomically
from ..hardware.choose import Hardware, choose
from ..hardware.probe import probe_driver
from ..hardware.tensorrt import load_library, this_machine
from .builder import BuildOptions, PlanBuilder, Progress

PARITY_BAR = 40.0  # dB, of the plans' results against those of the portable graphs

OpenPlans = Callable[[dict[str, Path], Manifest], Backend]  # plans by graph -> what runs them


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What to build and where the results go.

    Args:
        engine: The engine file.
        options: For TensorRT.
        output: Write another engine file; None to add to this one.
        strip_onnx: Leave the portable graphs out of the output.
        export_folder: Also write the plans there, for trtexec and other tools.
        timing_cache: A file with measured kernel times, which is read if it exists, and then written.
    """

    engine: Path
    options: BuildOptions
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
        open_plans: Opens plans to compare them; None to leave the comparison out.
        open_portable: Opens the portable graphs to compare with.
        report: Called with each step that begins.
        progress: Called while TensorRT works, if its version reports progress.

    Raises:
        DeviceError: There is no GPU to build on.
        BackendError: TensorRT is missing or gives up, or the plans compute something else.
        OutputError: The engine cannot be written; the old one is as it was.
    """
    # Check the request before minutes of work.
    output = request.output or request.engine
    if request.strip_onnx and request.output is None:
        raise OutputError("without its graphs the engine runs nowhere else; add --output OTHER.engine")
    if request.strip_onnx:
        check_apart(output, request.engine)
    check_writable(output)
    if request.timing_cache is not None:
        check_writable(request.timing_cache)
    folder = request.export_folder
    if folder is not None and folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; give the name of a folder for the plans")
    trt, machine = prepare(request)

    with (
        EngineFile.open(request.engine) as engine,
        folder_beside(output, otherwise="It is as it was before") as parts,
    ):
        # Build.
        device = CudaDevice(0)  # the one of the record, whatever is current in this thread
        try:
            with device.current():
                plans = _build_all(trt, engine, request, parts, report, progress)
        finally:
            device.close()

        # Compare.
        if engine.manifest.noise == "random":
            report("TensorRT draws the noise; whether it is new at every run has not been tested")
        parity: dict[str, float] = {}
        if open_plans is not None and open_portable is not None:
            report("comparing the plans with the portable graphs")
            parity = compare(open_portable(engine), open_plans(plans, engine.manifest), engine.manifest)

        # Write.
        record = _record(machine, request.options, engine, parity)
        report(f"writing {output}")
        files: dict[str, Content] = {RECORD: record.to_json().encode()}
        files |= {f"{name}.plan": path for name, path in plans.items()}
        add_plans(request.engine, record.target, files, output=output, strip=request.strip_onnx)
        if folder is not None:
            _export(files, folder)
    return record


def build_and_compare(
    request: BuildRequest, *, report: Callable[[str], None], progress: Progress | None = None
) -> tuple[PlanRecord, str]:
    """Build as `build` does; compare the plans with the portable graphs if both run here.

    Returns:
        The record, and why the plans were not compared; empty if they were.
    """
    hardware = Hardware()
    try:
        on_cpu, problem = choose(hardware, device="cpu"), hardware.tensorrt(0).problem
    except PspError as error:
        return build(request, report=report, progress=progress), str(error)
    record = build(
        request,
        open_plans=None if problem else TensorRtBackend.open_files,
        open_portable=None if problem else lambda engine: open_backend(engine, on_cpu),
        report=report,
        progress=progress,
    )
    return record, problem


def prepare(request: BuildRequest) -> tuple[Any, PlanTarget]:
    """Return TensorRT and what the plans will run on. This is quick: call it before any long work.

    Raises:
        DeviceError: There is no GPU to build on.
        BackendError: TensorRT is missing.
    """
    driver = probe_driver()  # first, since TensorRT crashes the process if there is no driver
    if driver.problem:
        raise DeviceError(
            f"a plan is built on the GPU that runs it, and there is none here: {driver.problem}. Run "
            f"psp-rt build {request.engine} there"
        )
    trt = load_library()
    return trt, this_machine(trt, driver)


def graph_names(manifest: Manifest) -> dict[str, str]:
    """Return the graph that each plan is built from, by the plan's name."""
    names = ["mapping", "generator"] if manifest.input is None else ["encoder", "mapping", "generator"]
    return {name: name if name == "mapping" else graph_name(name, manifest.precision) for name in names}


def compare(portable: Backend, plans: Backend, manifest: Manifest) -> dict[str, float]:
    """Run plans and portable graphs on drawn inputs, return how close the results are, and close both.

    Raises:
        BackendError: The plans compute something else.
    """
    try:
        z = np.random.default_rng(0).standard_normal((2, manifest.style_dim), dtype=np.float32)
        styles = portable.map(z)
        figures = {"styles_psnr_db": _psnr_db(plans.map(z), styles)}
        codes = np.repeat(styles[:, None], manifest.num_styles, axis=1)
        if manifest.input is not None:
            spec = manifest.input
            shape = (2, spec.height, spec.width, spec.channels)
            images = np.random.default_rng(0).integers(0, spec.labels or 256, shape, dtype=np.uint8)
            codes = portable.encode(images)
            figures["codes_psnr_db"] = _psnr_db(plans.encode(images), codes)
        if (
            manifest.noise != "random"
        ):  # otherwise each side draws its own noise, and no two pictures are equal
            weights = np.zeros(codes.shape[:2], np.float32)
            expected = portable.generate(codes, codes, weights)
            figures["picture_psnr_db"] = _psnr_db(plans.generate(codes, codes, weights), expected)
    finally:
        portable.close()
        plans.close()
    for name, figure in figures.items():
        if not figure >= PARITY_BAR:
            raise BackendError(
                f"the plans do not compute what the graphs do: {name} is {figure:.3g}, expected at least "
                f"{PARITY_BAR:g}. Nothing was written"
            )
    return figures


def _build_all(
    trt: Any,
    engine: EngineFile,
    request: BuildRequest,
    folder: Path,
    report: Callable[[str], None],
    progress: Progress | None,
) -> dict[str, Path]:
    cache, cache_file = b"", request.timing_cache
    if cache_file is not None and cache_file.is_file():
        try:
            cache = cache_file.read_bytes()
        except OSError as error:
            raise OutputError(
                f"the timing cache {cache_file} cannot be read: {error.strerror or error}"
            ) from error
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
        write_atomically(cache_file, builder.timing_cache)
    return plans


def _record(
    machine: PlanTarget, options: BuildOptions, engine: EngineFile, parity: dict[str, float]
) -> PlanRecord:
    members = engine.manifest.members
    graphs = graph_names(engine.manifest).values()
    sources = [f"{graph}.onnx" for graph in graphs]
    sources += [name for name in dict.fromkeys(map(weights_member, graphs)) if name in members]
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


def _export(files: dict[str, Content], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be created: {error.strerror or error}. The engine has its plans; take them out "
            "of it with unzip"
        ) from error
    for name, content in files.items():
        write_atomically(folder / name, content.read_bytes() if isinstance(content, Path) else bytes(content))


def _psnr_db(found: Any, expected: Any) -> float:
    """Return the peak signal-to-noise ratio, relative to the range of what is expected; 99 if equal."""
    reach = 255.0 if expected.dtype == np.uint8 else max(float(np.ptp(expected)), 1e-12)
    error = float(np.square(found.astype(np.float64) - expected.astype(np.float64)).mean()) / reach**2
    return 99.0 if error < 1e-10 else float(-10 * np.log10(error))
