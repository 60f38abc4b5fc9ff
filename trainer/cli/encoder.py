"""``python -m trainer encoder``: train an encoder for a generator."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import click
import torch

from psp_rt.errors import InputError
from psp_rt.files import sha256
from trainer import checkpoint
from trainer import recipe as recipes
from trainer.cli import options
from trainer.cli.options import File, Folder
from trainer.data.pairs import TrainingSet
from trainer.encoder.run import Run
from trainer.encoder.training import check_share, train
from trainer.loop.average import precision_notes
from trainer.loop.distributed import Team, joined
from trainer.loop.report import LATEST, Progress, open_folder, skipped_lines
from trainer.losses import identity as identities
from trainer.losses.criterion import Criterion, needed_files
from trainer.losses.identity import Identity
from trainer.losses.lpips import Lpips, LpipsAlex, LpipsVgg
from trainer.losses.moco import Moco
from trainer.networks import Encoder, EncoderKind, GeneratorConfig, official_channels
from trainer.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files and folders of a command line."""

    generator: Path | None
    images: Path | None
    pairs: Path | None
    validation: Path | None
    validation_pairs: Path | None
    backbone: Path | None
    lpips_features: Path | None
    lpips_heads: Path | None
    identity: Path | None
    moco: Path | None


@click.command("encoder")
@click.option("--task", type=click.Choice(recipes.TASKS), help="What to train, by the paper's recipe.")
@click.option("--recipe", type=File, help="Your own recipe, a copy of one in trainer/recipes.")
@options.changes
@options.small
@click.option("--encoder", type=click.Choice(get_args(EncoderKind)), help="Kind of encoder.  [default: psp]")
@click.option("--generator", type=File, help="The StyleGAN2 to train for; it stays as it is.")
@options.images
@options.align
@click.option("--pairs", type=Folder, help="Inputs for photos of the same name; else made from the photos.")
@options.validation
@click.option("--validation-pairs", type=Folder, help="Inputs for the validation photos.")
@click.option("--backbone", type=File, help="ArcFace IR-SE50 weights to start from.")
@options.lpips
@options.identity
@click.option("--moco", type=File, help="MoCo's ResNet-50, for domains other than faces.")
@options.output
@options.device
@options.compiled
@options.dry_run
def command(
    task: str | None,
    recipe: Path | None,
    changes: tuple[str, ...],
    small: bool,
    encoder: str | None,
    output: Path | None,
    device: str,
    compiled: bool,
    dry_run: bool,
    align: bool,
    **named: Path | None,
) -> None:
    """Train an encoder for a generator; run the same command again to resume.

    On several GPUs: torchrun --nproc-per-node N -m trainer encoder ...
    """
    kind = () if encoder is None else (f'encoder="{encoder}"',)
    chosen = choose(task, recipe, (*(recipes.SMALL if small else ()), *changes, *kind))
    files = Files(**named)
    if dry_run:
        click.echo(json.dumps(describe(chosen, files, output), indent=2))
        return
    if align and files.pairs:
        raise InputError("--align moves the photos, and the inputs of --pairs stay; leave out one of them")
    with joined(device) as team:
        if align and output is not None:
            progress = Progress(silent=not team.leads)
            images, held_out = (
                options.aligned(folder, output, progress) for folder in (files.images, files.validation)
            )
            files = replace(files, images=images, validation=held_out)
        run_training(chosen, files, output, team, compiled=compiled)


def choose(task: str | None, recipe: Path | None, changes: tuple[str, ...]) -> Recipe:
    """Return the recipe of a task, or the user's own, with changes."""
    if recipe is not None:
        read = recipes.read(recipe, changes)
        if task not in (None, read.task):
            raise InputError(f"{recipe} is a recipe for {read.task}, not for {task}; omit --task")
        return read
    if task is None:
        raise InputError(
            f"choose what to train: --task with one of {', '.join(recipes.TASKS)}, or --recipe FILE"
        )
    return recipes.default(task, changes)


def describe(recipe: Recipe, files: Files, output: Path | None = None) -> dict[str, Any]:
    """Return the settings as they would run; without a generator, for the official size."""
    config = GeneratorConfig(channels=official_channels(1024))
    if files.generator:
        config = checkpoint.load_generator(files.generator)[0].config
    recipe = recipes.with_sizes(recipe, config)
    with torch.device("meta"):  # takes no memory
        encoder = Encoder.create(recipe.encoder_config(config))
    named = {name: str(path) for name, path in {**vars(files), "output": output}.items() if path}
    return {
        "recipe": recipe.to_dict(),
        "files": named,
        "needs": {option: what for option, what in needs(recipe).items() if _field(option) not in named},
        "generator_size": config.size,
        "num_styles": config.num_styles,
        "encoder_parameters": sum(value.numel() for value in encoder.parameters()),
    }


def needs(recipe: Recipe) -> dict[str, str]:
    """Return the options that training needs, with a description and where to get the file."""
    pairs = (
        {"--pairs": "a folder of inputs, with the names of the photos"} if recipe.source == "pairs" else {}
    )
    return {
        "--generator": checkpoint.GENERATOR_SOURCE,
        "--images": "a folder of photos",
        **pairs,
        **needed_files(recipe.losses, recipe.lpips_network),
        "--output": "a folder for the run",
    }


def _field(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def run_training(recipe: Recipe, files: Files, output: Path | None, team: Team, *, compiled: bool) -> None:
    """Load everything, train, and show the reports."""
    # Check the command line.
    main = ("--generator", "--images", "--output")
    named = {option: getattr(files, _field(option), None) for option in main} | {"--output": output}
    options.require_named({option: needs(recipe)[option] for option in main}, named)
    assert files.generator and files.images and output  # noqa: PT018  # as required
    check_share(recipe, team)
    progress = Progress(silent=not team.leads)
    progress.say(f"training an encoder for {recipe.task}")

    # Load.
    generator, mean_style = checkpoint.load_generator(files.generator)
    recipe = recipes.with_sizes(recipe, generator.config)
    criterion = load_criterion(recipe, files).to(team.device)
    data = load_set(recipe, files.images, files.pairs, progress)
    validation = (
        load_set(recipe, files.validation, files.validation_pairs, progress) if files.validation else None
    )
    hashes = hash_files(recipe, files)
    for note in precision_notes(team.device, wanted=recipe.precision == "bf16"):
        progress.say(note)
    if team.leads:
        open_folder(output, {"recipe": recipe.to_dict(), "data": data.fingerprint, **hashes})
    team.add_up(torch.zeros(1, device=team.device))  # the others wait for the folder

    # Start or resume.
    def prepare(encoder: Encoder) -> None:
        if files.backbone:
            identities.start_encoder(encoder, files.backbone)

    run = Run.start(recipe, generator, mean_style, device=team.device, prepare=prepare)
    run.files = hashes
    latest = output / LATEST
    if latest.exists():
        run.restore(latest)
        progress.say(f"resuming after {run.images_seen} images")

    # Train.
    for report in train(
        run,
        criterion,
        data,
        team=team,
        output=output,
        validation=validation,
        compiled=compiled,
        progress=progress,
    ):
        click.echo(options.as_line(report))


def load_criterion(recipe: Recipe, files: Files) -> Criterion:
    """Load the networks of the losses in use."""
    weights, lpips = recipe.losses, None
    kind: type[Lpips] = LpipsAlex if recipe.lpips_network == "alex" else LpipsVgg
    if (weights.lpips or weights.inner_lpips) and files.lpips_features and files.lpips_heads:
        lpips = kind.load(features=files.lpips_features, heads=files.lpips_heads)
    identity = Identity.load(files.identity) if weights.identity and files.identity else None
    moco = Moco.load(files.moco) if weights.moco and files.moco else None
    return Criterion(weights, lpips=lpips, identity=identity, moco=moco, lpips_network=recipe.lpips_network)


def hash_files(recipe: Recipe, files: Files) -> dict[str, str]:
    """Return the hashes of the files that determine the outcome of a run."""
    weights = recipe.losses
    used = {
        "generator": True,
        "backbone": True,
        "lpips_features": weights.lpips or weights.inner_lpips,
        "lpips_heads": weights.lpips or weights.inner_lpips,
        "identity": weights.identity,
        "moco": weights.moco,
    }
    named = {name: getattr(files, name) for name, is_used in used.items() if is_used}
    return {name: sha256(path) for name, path in named.items() if path}


def load_set(recipe: Recipe, images: Path, pairs: Path | None, progress: Progress) -> TrainingSet:
    """Read a folder of photos, and show what was left out."""
    found = TrainingSet.load(recipe, images, pairs, show=progress.count)
    for line in [f"{len(found)} photos from {images}", *skipped_lines(found.skipped)]:
        progress.say(line)
    return found
