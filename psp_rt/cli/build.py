"""``psp-rt build``: add TensorRT plans to an engine."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..backends import Backend, open_backend
from ..backends.tensorrt.backend import TensorRtBackend
from ..build.build import BuildRequest, build
from ..build.builder import BuildOptions, Progress
from ..cuda.device import load_driver
from ..engine.plans import PlanRecord
from ..engine.reader import EngineFile
from ..errors import PspError
from ..hardware.choose import Machine, choose
from .info import PLAN_FIGURES, in_words

Batch = click.IntRange(min=1, max=4096)
File = click.Path(path_type=Path)


@click.command("build")
@click.argument("engine", type=File)
@click.option("--min-batch", type=Batch, default=1, show_default=True, help="Smallest batch.")
@click.option("--opt-batch", type=Batch, default=1, show_default=True, help="The batch to be fastest at.")
@click.option("--max-batch", type=Batch, default=4, show_default=True, help="Largest batch.")
@click.option("--workspace", type=click.IntRange(min=1), metavar="MIB", help="Memory limit. Default: none.")
@click.option("--timing-cache", type=File, metavar="FILE", help="Makes the next build faster.")
@click.option("--version-compatible", is_flag=True, help="Also for later versions of this major TensorRT.")
@click.option("--hardware-compatible", is_flag=True, help="Also for other GPUs, Ampere or newer; slower.")
@click.option("--rtx", is_flag=True, help="Build with TensorRT for RTX.")
@click.option(
    "--compute-capability", multiple=True, metavar="8.9", help="With --rtx: needs no GPU. May be repeated."
)
@click.option("-o", "--output", type=File, help="Write another engine instead of adding to this one.")
@click.option("--strip-onnx", is_flag=True, help="Leave the portable graphs out; needs --output.")
@click.option("--export-plan", type=File, metavar="DIR", help="Also write the plans there, for trtexec.")
def build_command(
    *,
    engine: Path,
    min_batch: int,
    opt_batch: int,
    max_batch: int,
    workspace: int | None,
    timing_cache: Path | None,
    version_compatible: bool,
    hardware_compatible: bool,
    rtx: bool,
    compute_capability: tuple[str, ...],
    output: Path | None,
    strip_onnx: bool,
    export_plan: Path | None,
) -> None:
    """Add TensorRT plans for this machine's GPU to ENGINE.

    They are compared with the portable graphs before they are written. Not yet run on a GPU. Choose among
    several GPUs with CUDA_VISIBLE_DEVICES.
    """
    if not min_batch <= opt_batch <= max_batch:
        raise click.UsageError(
            f"--min-batch {min_batch}, --opt-batch {opt_batch}, --max-batch {max_batch}; "
            "expected them in ascending order"
        )
    if compute_capability and not rtx:
        raise click.UsageError("--compute-capability needs --rtx; TensorRT builds for the GPU that is here")
    options = BuildOptions(
        batches=(min_batch, opt_batch, max_batch),
        workspace_mib=workspace,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        compute_capabilities=compute_capability,
    )
    request = BuildRequest(
        engine=engine,
        options=options,
        rtx=rtx,
        output=output,
        strip_onnx=strip_onnx,
        export_folder=export_plan,
        timing_cache=timing_cache,
    )
    build_and_tell(request)


def build_and_tell(request: BuildRequest) -> PlanRecord:
    """Build, compare the plans with the portable graphs where both run here, and say what was made."""
    problem = comparison_obstacle(request)
    record = build(
        request,
        open_plans=None if problem else TensorRtBackend.open_files,
        open_portable=None if problem else open_on_cpu,
        report=lambda step: click.echo(f"... {step}"),
        progress=_bar(),
    )
    click.echo(f"plans for {record.machine}, batches {record.min_batch} to {record.max_batch}")
    click.echo(f"wrote {request.output or request.engine}: plans/{record.target}")
    if problem:
        click.echo(f"the plans were not compared with the graphs: {problem}")
    for name, text in in_words(record.parity, PLAN_FIGURES).items():
        click.echo(f"{name}: {text}, of the plans against the portable graphs")
    return record


def comparison_obstacle(request: BuildRequest) -> str:
    """Return why plans cannot be compared with the portable graphs here; empty if they can."""
    if request.rtx:
        return "psp_rt runs no plans of TensorRT for RTX"
    try:
        load_driver()
        choose(Machine(), device="cpu")
    except PspError as error:
        return str(error)
    return ""


def open_on_cpu(engine: EngineFile) -> Backend:
    """Open the portable graphs of an engine."""
    return open_backend(engine, choose(Machine(), device="cpu"))


def _bar() -> Progress | None:
    """Return what shows the progress of a build on a terminal."""
    if not sys.stderr.isatty():
        return None

    def show(phase: str, done: int, whole: int) -> None:
        click.echo(f"\r{phase[:60]:60} {done:5}/{whole:<5}", nl=False, err=True)

    return show
