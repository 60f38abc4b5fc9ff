"""``psp-rt build``: add TensorRT plans to an engine."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..build import BuildOptions, BuildRequest, build_and_compare
from ..build.builder import Progress
from ..engine.plans import PlanRecord
from .info import PLAN_FIGURES, in_words

Batch = click.IntRange(min=1, max=4096)
File = click.Path(path_type=Path)


@click.command("build")
@click.argument("engine", type=File)
@click.option("--min-batch", type=Batch, default=1, show_default=True, help="Smallest batch.")
@click.option("--opt-batch", type=Batch, help="The batch to optimize for, besides 1. Default: the largest.")
@click.option("--max-batch", type=Batch, default=4, show_default=True, help="Largest batch.")
@click.option("--workspace", type=click.IntRange(min=1), metavar="MIB", help="Memory limit. Default: none.")
@click.option("--timing-cache", type=File, metavar="FILE", help="Makes the next build faster.")
@click.option("--version-compatible", is_flag=True, help="Also for later versions of this major TensorRT.")
@click.option("--hardware-compatible", is_flag=True, help="Also for other GPUs, Ampere or newer; slower.")
@click.option("-o", "--output", type=File, help="Write another engine instead of adding to this one.")
@click.option("--strip-onnx", is_flag=True, help="Leave the portable graphs out; needs --output.")
@click.option("--export-plan", type=File, metavar="DIR", help="Also write the plans there, for trtexec.")
def build_command(
    *,
    engine: Path,
    min_batch: int,
    opt_batch: int | None,
    max_batch: int,
    workspace: int | None,
    timing_cache: Path | None,
    version_compatible: bool,
    hardware_compatible: bool,
    output: Path | None,
    strip_onnx: bool,
    export_plan: Path | None,
) -> None:
    """Add TensorRT plans for this machine's GPU to ENGINE.

    They are compared with the portable graphs before they are written. Choose among several GPUs with
    CUDA_VISIBLE_DEVICES.
    """
    opt_batch = max_batch if opt_batch is None else opt_batch
    if not min_batch <= opt_batch <= max_batch:
        raise click.UsageError(
            f"--min-batch {min_batch}, --opt-batch {opt_batch}, --max-batch {max_batch}; "
            "expected them in ascending order"
        )
    options = BuildOptions(
        batches=(min_batch, opt_batch, max_batch),
        workspace_mib=workspace,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
    )
    request = BuildRequest(
        engine=engine,
        options=options,
        output=output,
        strip_onnx=strip_onnx,
        export_folder=export_plan,
        timing_cache=timing_cache,
    )
    build_and_report(request)


def build_and_report(request: BuildRequest) -> PlanRecord:
    """Build, compare the plans with the portable graphs if both run here, and print what was made."""
    record, problem = build_and_compare(
        request, report=lambda step: click.echo(f"... {step}"), progress=_bar()
    )
    click.echo(f"plans for {record.machine}, batches {record.min_batch} to {record.max_batch}")
    click.echo(f"wrote {request.output or request.engine}: plans/{record.target}")
    if problem:
        click.echo(f"the plans were not compared with the graphs: {problem}")
    for name, text in in_words(record.parity, PLAN_FIGURES).items():
        click.echo(f"{name}: {text}, of the plans against the portable graphs")
    return record


def _bar() -> Progress | None:
    """Return what shows the progress of a build on a terminal."""
    if not sys.stderr.isatty():
        return None

    def show(phase: str, done: int, whole: int) -> None:
        click.echo(f"\r{phase[:60]:60} {done:5}/{whole:<5}", nl=False, err=True)

    return show
