"""`python -m export inspect`: what an engine computes, in which precision, and where its time goes."""

import json
from pathlib import Path

import click

from export import plan_layers
from export.inspect import tables as inspect_tables
from export.inspect.report import Inspection, compare_precisions, view_graphs
from psp_rt import EngineFile, OutputError
from psp_rt.cli.group import Command
from psp_rt.files import check_apart, check_writable
from psp_rt.hardware.probe import default_threads

File = click.Path(path_type=Path)
RUNS = 10


@click.command("inspect", cls=Command)
@click.argument("engine", type=File)
@click.option("--layers", is_flag=True, help="Print every layer.")
@click.option(
    "--time", "timed", is_flag=True, help="Time each layer: FP32 graphs on the CPU, plans on the GPU."
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="On the CPU. Default: one for each physical core."
)
@click.option("--compare", is_flag=True, help="Compare FP16, emulated, with FP32 layer by layer.")
@click.option(
    "--pictures", type=File, multiple=True, help="A picture or a folder to compare on. May be repeated."
)
@click.option(
    "--save-for-polygraphy", type=File, metavar="DIR", help="Keep what was compared for Polygraphy."
)
@click.option(
    "--tensorrt", is_flag=True, help="Look into ENGINE's plan for this machine instead of its graphs."
)
@click.option("--plan", type=File, metavar="FILE", help="Look into generator.plan and the like instead.")
@click.option("--json", "json_file", type=File, metavar="FILE", help="Also write everything there.")
def inspect_command(
    *,
    engine: Path,
    layers: bool,
    timed: bool,
    threads: int | None,
    compare: bool,
    pictures: tuple[Path, ...],
    save_for_polygraphy: Path | None,
    tensorrt: bool,
    plan: Path | None,
    json_file: Path | None,
) -> None:
    """Say what ENGINE computes: its layers, their precision, and with --time how long each takes.

    Plans are looked into by TensorRT, on a GPU; that has not run on one yet.
    """
    _check_options(compare, pictures, save_for_polygraphy, tensorrt, plan)
    if json_file is not None:
        check_apart(json_file, engine, plan, *pictures)
        check_writable(json_file)
    if save_for_polygraphy is not None and save_for_polygraphy.is_file():
        raise OutputError(
            f"{save_for_polygraphy} is a file; give the name of a folder for Polygraphy's files"
        )
    found, runs = Inspection(engine=str(engine)), RUNS if timed else 0
    with EngineFile.open(engine, needs_graphs=not (tensorrt or plan)) as file:
        if plan is not None:
            found.plans = plan_layers.from_file(plan, file.manifest, runs=runs)
        elif tensorrt:
            found.plans = plan_layers.from_engine(file, runs=runs)
        else:
            on_threads = default_threads() if threads is None else threads
            found.graphs = view_graphs(file, time_runs=runs, threads=on_threads, report=_report)
        if compare:
            save_to = save_for_polygraphy
            found.differences = compare_precisions(file, pictures, save_to=save_to, report=_report)
    for line in inspect_tables.lines(found, every_layer=layers):
        click.echo(line)
    if json_file is not None:
        _write(json_file, found)


def _check_options(
    compare: bool, pictures: tuple[Path, ...], save_to: Path | None, tensorrt: bool, plan: Path | None
) -> None:
    if not compare and (pictures or save_to is not None):
        raise click.UsageError("--pictures and --save-for-polygraphy are for --compare; add that")
    if tensorrt and plan is not None:
        raise click.UsageError("--tensorrt and --plan are both given; choose one")
    if compare and (tensorrt or plan is not None):
        raise click.UsageError("--compare is for the graphs of ENGINE; leave out --tensorrt and --plan")


def _write(path: Path, found: Inspection) -> None:
    try:
        path.write_text(json.dumps(found.as_json(), indent=1) + "\n")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    click.echo(f"wrote {path}")


def _report(step: str) -> None:
    click.echo(f"... {step}", err=True)
