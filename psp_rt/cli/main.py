"""The ``psp-rt`` command."""

from __future__ import annotations

from pathlib import Path

import click

from ..engine.reader import EngineFile
from ..verification import MEMORY_MIB, SECONDS
from ..verification import verify as verify_in_child
from .build import build_command
from .faces import faces_command
from .group import Commands
from .info import describe, diagnose, installed_packages
from .run import run_command
from .serve import serve_command
from .video import video_command


@click.group(cls=Commands)
@click.version_option(installed_packages(["psp_rt"]).get("psp_rt", "of a checkout"))
def main() -> None:
    """Run image-translation models from one engine file."""


@main.command()
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def info(engine: Path, as_json: bool) -> None:
    """Show what ENGINE contains and where it runs, without loading it."""
    with EngineFile.open(engine, needs_graphs=False) as file:
        click.echo(file.manifest.to_json().rstrip() if as_json else "\n".join(describe(file)))


@main.command()
@click.argument("engine", required=False, type=click.Path(path_type=Path))
def doctor(engine: Path | None) -> None:
    """Show what this machine has and what would run here; with ENGINE, run it once."""
    for line in diagnose(engine):
        click.echo(line)


@main.command()
@click.argument("engine", type=click.Path(path_type=Path))
@click.option(
    "--seconds", type=click.FloatRange(min=1), default=SECONDS, show_default=True, help="Time limit."
)
@click.option(
    "--memory",
    type=click.IntRange(min=64),
    default=MEMORY_MIB,
    show_default=True,
    metavar="MIB",
    help="Memory limit (Linux).",
)
def verify(engine: Path, seconds: float, memory: int) -> None:
    """Open ENGINE and run it once in a process of its own, for files from strangers."""
    click.echo(f"{engine}: {verify_in_child(engine, seconds=seconds, memory_mib=memory)}")


main.add_command(run_command)
main.add_command(faces_command)
main.add_command(video_command)
main.add_command(serve_command)
main.add_command(build_command)
