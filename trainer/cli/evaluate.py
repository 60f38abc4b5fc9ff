"""``python -m trainer evaluate``: trained encoders side by side."""

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch

from psp_rt.errors import InputError, OutputError
from trainer.evaluation.entrants import Entrant, check_comparable
from trainer.evaluation.measure import Judge, columns, load_sets, measure
from trainer.evaluation.tables import Comparison, Row, circular
from trainer.loop import distributed as team
from trainer.loop import sheet
from trainer.loop.report import left_out
from trainer.losses import weight_files
from trainer.losses.identity import Identity
from trainer.losses.lpips import LpipsAlex

Folder = click.Path(exists=True, file_okay=False, path_type=Path)
File = click.Path(exists=True, dir_okay=False, path_type=Path)
Written = click.Path(dir_okay=False, path_type=Path)
SHEET_ROWS = 8


@click.command("evaluate")
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--images", type=Folder, required=True, help="Photos that no run was trained on; all count.")
@click.option("--pairs", type=Folder, help="Inputs for the photos of the same name, for runs on pairs.")
@click.option(
    "--identity-network",
    type=File,
    help="For the similarity: CurricularFace IR-101 (the paper's), ArcFace IR-SE50 or MobileFaceNet.",
)
@click.option("--lpips-features", type=File, help="AlexNet weights in torchvision's format.")
@click.option("--lpips-heads", type=File, help="LPIPS v0.1 weights: alex.pth.")
@click.option("--markdown", type=Written, help="Write the table here too.")
@click.option("--json", "json_file", type=Written, help="Write everything here, photo by photo.")
@click.option("--sheet", "sheet_file", type=Written, help="Write a picture: input, target, each run.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def command(
    runs: tuple[Path, ...],
    images: Path,
    pairs: Path | None,
    identity_network: Path | None,
    lpips_features: Path | None,
    lpips_heads: Path | None,
    markdown: Path | None,
    json_file: Path | None,
    sheet_file: Path | None,
    device: str,
) -> None:
    """Measure RUNS (run folders or checkpoint files) on a folder of photos, as the paper's Table 1.

    Similarity, LPIPS, MSE and run time; the averaged weights are measured.
    """
    check_outputs([markdown, json_file, sheet_file])
    if (lpips_features is None) != (lpips_heads is None):
        raise InputError("LPIPS needs both its files: --lpips-features and --lpips-heads")
    lpips = (
        LpipsAlex.load(features=lpips_features, heads=lpips_heads) if lpips_features and lpips_heads else None
    )
    comparison = evaluate(
        [Entrant.load(run) for run in runs],
        images,
        pairs=pairs,
        identity_network=identity_network,
        lpips=lpips,
        device=team.join(device).device,
        sheet_file=sheet_file,
    )
    click.echo(comparison.as_text())
    if markdown:
        write(markdown, comparison.as_markdown())
    if json_file:
        write(json_file, json.dumps(comparison.as_json(), indent=1, allow_nan=False) + "\n")


def evaluate(
    entrants: Sequence[Entrant],
    images: Path,
    *,
    device: torch.device,
    pairs: Path | None = None,
    identity_network: Path | None = None,
    lpips: LpipsAlex | None = None,
    sheet_file: Path | None = None,
) -> Comparison:
    """Measure models on a folder of photos.

    Raises:
        InputError: They cannot stand in one table, or a file is not what it should be.
    """
    check_comparable(entrants)
    identity = Identity.load(identity_network).to(device) if identity_network else None
    known = weight_files.sha256(identity_network) if identity_network else None
    sets = load_sets(entrants, images, pairs)
    for line in left_out(sets[0].skipped):
        click.echo(line)
    entrants = [entrant.to(device) for entrant in entrants]
    judge = Judge(lpips.to(device) if lpips else None, identity)
    figures = measure(entrants, sets, judge, device=device)
    if sheet_file:
        numbers = np.unique(np.linspace(0, len(sets[0]) - 1, SHEET_ROWS).astype(int)).tolist()
        shown = list(columns(entrants, sets, numbers, device))
        try:
            sheet.write(sheet_file, shown, scale=2 if shown[0].shape[2] < 128 else 1)
        except (OSError, ValueError) as error:
            raise OutputError(f"cannot write {sheet_file}: {error}") from error
    rows = [
        Row(entrant=entrant, figures=found, circular=circular(entrant, known))
        for entrant, found in zip(entrants, figures, strict=True)
    ]
    return Comparison(
        rows=rows, skipped=sets[0].skipped, machine=describe_machine(device), identity_sha256=known
    )


def describe_machine(device: torch.device) -> dict[str, str]:
    """Return what run times depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    threads = torch.get_num_threads()
    shown = name if device.type == "cuda" else f"a CPU ({name}, {threads} threads)"
    return {"device": shown, "threads": str(threads), "torch": torch.__version__}


def check_outputs(paths: Sequence[Path | None]) -> None:
    """Refuse files that cannot be written before anything is measured."""
    for path in paths:
        if path and not os.access(path.absolute().parent, os.W_OK):
            raise OutputError(
                f"{path} cannot be written: its folder is not there or is read-only; make it first"
            )


def write(path: Path, text: str) -> None:
    """Write a file whole, or leave the one that was there."""
    unfinished = path.with_name(path.name + ".partial")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
