"""``python -m trainer evaluate``: trained models side by side."""

import json
import platform
from collections.abc import Sequence
from pathlib import Path

import click
import torch

from psp_rt.errors import InputError
from psp_rt.files import check_writable, sha256, write_atomically
from trainer.cli import options
from trainer.cli.options import File, Folder, NewFile
from trainer.evaluation.measure import Candidate, Metrics, check_comparable, columns, load_sets, measure
from trainer.evaluation.tables import Comparison, Row, circular
from trainer.loop.distributed import join
from trainer.loop.report import Progress, skipped_lines, write_sheet
from trainer.losses.identity import Identity
from trainer.losses.lpips import LpipsAlex

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
@options.lpips
@click.option("--markdown", type=NewFile, help="Also write the table here.")
@click.option("--json", "json_file", type=NewFile, help="Write everything here, photo by photo.")
@click.option("--sheet", "sheet_file", type=NewFile, help="Write a picture: input, photo, each run.")
@options.device
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
    """Measure RUNS on a folder of photos, as in the paper's Table 1: similarity, LPIPS, MSE and run time.

    A run is a run folder, a checkpoint file, whose averaged weights are measured, or an engine, which runs as
    it is deployed.
    """
    for path in (markdown, json_file, sheet_file):
        if path:
            check_writable(path)
    if (lpips_features is None) != (lpips_heads is None):
        raise InputError("LPIPS needs both its files: --lpips-features and --lpips-heads")
    lpips = (
        LpipsAlex.load(features=lpips_features, heads=lpips_heads) if lpips_features and lpips_heads else None
    )
    chosen, progress = join(device).device, Progress()
    progress.say(f"loading {len(runs)} models")
    comparison = evaluate(
        [Candidate.load(run, chosen) for run in runs],
        images,
        pairs=pairs,
        identity_network=identity_network,
        lpips=lpips,
        device=chosen,
        sheet_file=sheet_file,
        progress=progress,
    )
    click.echo(comparison.as_text())
    if markdown:
        write_atomically(markdown, comparison.as_markdown())
    if json_file:
        write_atomically(json_file, json.dumps(comparison.as_json(), indent=1, allow_nan=False) + "\n")


def evaluate(
    candidates: Sequence[Candidate],
    images: Path,
    *,
    device: torch.device,
    pairs: Path | None = None,
    identity_network: Path | None = None,
    lpips: LpipsAlex | None = None,
    sheet_file: Path | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Measure models on a folder of photos.

    Raises:
        InputError: They cannot be compared in one table, or a file has the wrong content.
    """
    # Load.
    check_comparable(candidates)
    progress = progress or Progress(silent=True)
    identity = Identity.load(identity_network).to(device) if identity_network else None
    known = sha256(identity_network) if identity_network else None
    sets = load_sets(candidates, images, pairs, show=progress.count)
    for line in skipped_lines(sets[0].skipped):
        progress.say(line)

    # Measure.
    metrics = Metrics(lpips.to(device) if lpips else None, identity)
    figures = measure(candidates, sets, metrics, device=device, show=progress.count)
    progress.clear()
    if sheet_file:
        write_sheet(sheet_file, list(columns(candidates, sets, sets[0].spread(SHEET_ROWS), device)))
    rows = [
        Row(candidate=candidate, figures=found, circular=circular(candidate, known))
        for candidate, found in zip(candidates, figures, strict=True)
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
