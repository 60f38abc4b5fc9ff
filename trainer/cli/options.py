"""Command-line options that several commands share."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from psp_rt.errors import InputError
from trainer.data.align import align_photos
from trainer.loop.report import Progress, skipped_lines

F = TypeVar("F", bound=Callable[..., Any])
Folder = click.Path(exists=True, file_okay=False, path_type=Path)
File = click.Path(exists=True, dir_okay=False, path_type=Path)
NewFile = click.Path(dir_okay=False, path_type=Path)
NewFolder = click.Path(file_okay=False, path_type=Path)

device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
images = click.option("--images", type=Folder, help="Photos to train on.")
validation = click.option("--validation", type=Folder, help="Photos to measure on, never trained on.")
output = click.option("--output", type=NewFolder, help="Run folder.")
identity = click.option(
    "--identity", type=File, help="ArcFace IR-SE50 or MobileFaceNet, for the identity loss."
)
config = click.option("--config", type=File, help="Settings, a TOML file.")
changes = click.option(
    "--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change a setting, as in --set batch=16."
)
align = click.option(
    "--align",
    is_flag=True,
    help="Find the face of each photo first, and cut it as FFHQ's are, into OUTPUT-aligned.",
)
small = click.option("--small", is_flag=True, help="Settings for a CPU; --set still changes them.")
dry_run = click.option("--dry-run", is_flag=True, help="Print the settings; needs no files.")
compiled = click.option(
    "--compile/--no-compile", "compiled", default=False, help="Compile the networks first (minutes)."
)


def lpips(command: F) -> F:
    """Add the two files of LPIPS."""
    features = click.option(
        "--lpips-features", type=File, help="AlexNet (or VGG-16) weights in torchvision's format."
    )
    heads = click.option("--lpips-heads", type=File, help="LPIPS v0.1 weights: alex.pth (or vgg.pth).")
    return features(heads(command))


def aligned(folder: Path | None, output: Path, progress: Progress) -> Path | None:
    """Return a folder of aligned faces, made of the photos in a folder, beside the run folder."""
    if folder is None:
        return None
    progress.say(f"aligning the photos of {folder}")
    cache, left_out = align_photos(folder, Path(f"{output}-aligned") / folder.resolve().name)
    for line in skipped_lines(left_out):
        progress.say(line)
    return cache


def require_named(needs: Mapping[str, str], named: Mapping[str, object]) -> None:
    """Raise an error that lists the options that are missing, and what each needs.

    Args:
        needs: Option -> what to pass.
        named: Option -> its value.
    """
    missing = [f"{option} ({what})" for option, what in needs.items() if named.get(option) is None]
    if missing:
        raise InputError(f"missing: {', '.join(missing)}. --dry-run shows the settings without them")


def as_line(report: Mapping[str, float]) -> str:
    """Return a report as a line of JSON."""
    return json.dumps({name: round(value, 5) for name, value in report.items()})
