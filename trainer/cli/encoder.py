"""``python -m trainer encoder``: train an encoder for a generator."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import click
import torch

from psp_rt.errors import InputError
from trainer import generator_file
from trainer import recipe as tasks
from trainer.data.pairs import TrainingSet
from trainer.data.photos import fingerprint
from trainer.encoder.run import Run
from trainer.encoder.training import check_share, train
from trainer.loop import distributed as team
from trainer.loop.precision import shortfall
from trainer.loop.report import left_out
from trainer.loop.run_folder import LATEST, open_folder
from trainer.losses import arcface, weight_files
from trainer.losses.criterion import Criterion, needed_files
from trainer.losses.identity import Identity
from trainer.losses.lpips import Lpips, LpipsAlex, LpipsVgg
from trainer.losses.moco import Moco
from trainer.networks import Encoder, EncoderKind, GeneratorConfig, official_channels
from trainer.recipe import Recipe

Folder = click.Path(exists=True, file_okay=False, path_type=Path)
File = click.Path(exists=True, dir_okay=False, path_type=Path)


@dataclass(frozen=True, kw_only=True)
class Files:
    """What the user named on the command line."""

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
@click.option("--task", type=click.Choice(tasks.TASKS), help="What to train, by the paper's recipe.")
@click.option("--recipe", type=File, help="Your own recipe, a copy of one in trainer/recipes.")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change the recipe: batch=16.")
@click.option("--encoder", type=click.Choice(get_args(EncoderKind)), help="Kind of encoder.  [default: psp]")
@click.option("--generator", type=File, help="The StyleGAN2 to train for; it stays as it is.")
@click.option("--images", type=Folder, help="Photos: the targets.")
@click.option("--pairs", type=Folder, help="Inputs for the photos of the same name; else made of the photos.")
@click.option("--validation", type=Folder, help="Photos to measure on; never trained on.")
@click.option("--validation-pairs", type=Folder, help="Inputs for those.")
@click.option("--backbone", type=File, help="ArcFace IR-SE50 weights to start from.")
@click.option("--lpips-features", type=File, help="AlexNet (or VGG-16) weights in torchvision's format.")
@click.option("--lpips-heads", type=File, help="LPIPS v0.1 weights: alex.pth (or vgg.pth).")
@click.option("--identity", type=File, help="ArcFace IR-SE50 or MobileFaceNet, for the identity loss.")
@click.option("--moco", type=File, help="MoCo's ResNet-50, for other domains than faces.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Run folder.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--compile/--no-compile", "compiled", default=False, help="Compile the encoder first (minutes)."
)
@click.option("--dry-run", is_flag=True, help="Print the settings; needs no files.")
def command(
    task: str | None,
    recipe: Path | None,
    changes: tuple[str, ...],
    encoder: str | None,
    output: Path | None,
    device: str,
    compiled: bool,
    dry_run: bool,
    **named: Path | None,
) -> None:
    """Train an encoder for a generator; run the same command again to resume.

    Several GPUs: torchrun --nproc-per-node N -m trainer encoder ...
    """
    chosen = choose(task, recipe, changes if encoder is None else (*changes, f'encoder="{encoder}"'))
    files = Files(**named)
    if dry_run:
        click.echo(json.dumps(describe(chosen, files, output), indent=2))
        return
    with team.joined(device) as member:
        run_training(chosen, files, output, member, compiled=compiled)


def choose(task: str | None, recipe: Path | None, changes: tuple[str, ...]) -> Recipe:
    """Return the recipe of a task, or the user's own, with changes."""
    if recipe is not None:
        read = tasks.read(recipe, changes)
        if task not in (None, read.task):
            raise InputError(f"{recipe} is a recipe for {read.task}, not for {task}; leave --task out")
        return read
    if task is None:
        raise InputError(f"say what to train: --task with one of {', '.join(tasks.TASKS)}, or --recipe FILE")
    return tasks.default(task, changes)


def describe(recipe: Recipe, files: Files, output: Path | None = None) -> dict[str, Any]:
    """Return the settings as they would run; without a generator, for the official size."""
    config = GeneratorConfig(channels=official_channels(1024))
    if files.generator:
        config = generator_file.load(files.generator)[0].config
    recipe = tasks.with_sizes(recipe, config)
    with torch.device("meta"):  # no memory for weights that nobody uses
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
    """Return the options that training takes, each with what it wants and where that is had."""
    pairs = {"--pairs": "a folder of inputs, of the same names"} if recipe.source == "pairs" else {}
    return {
        "--generator": generator_file.SOURCE,
        "--images": "a folder of photos",
        **pairs,
        **needed_files(recipe.losses, recipe.lpips_network),
        "--output": "a folder for the run",
    }


def _field(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def run_training(
    recipe: Recipe, files: Files, output: Path | None, member: team.Team, *, compiled: bool
) -> None:
    """Load everything, train, and show the reports."""
    if files.generator is None or files.images is None or output is None:
        raise InputError(
            "name the generator with --generator FILE, the photos with --images DIR and the run folder "
            "with --output RUN; --dry-run shows the settings without them"
        )
    check_share(recipe, member)
    generator, mean_style = generator_file.load(files.generator)
    recipe = tasks.with_sizes(recipe, generator.config)
    criterion = load_criterion(recipe, files).to(member.device)
    data = load_set(recipe, files.images, files.pairs, member)
    validation = (
        load_set(recipe, files.validation, files.validation_pairs, member) if files.validation else None
    )
    hashes = hash_files(recipe, files)
    if member.leads:
        for text in shortfall(member.device, wanted=recipe.precision == "bf16"):
            click.echo(text)
        open_folder(output, {"recipe": recipe.to_dict(), "data": data_fingerprint(data), **hashes})
    member.add_up(torch.zeros(1, device=member.device))  # the others wait for the folder
    latest = output / LATEST

    def prepare(encoder: Encoder) -> None:
        if files.backbone:
            arcface.start_encoder(encoder, files.backbone)

    run = Run.start(recipe, generator, mean_style, device=member.device, prepare=prepare)
    run.files = hashes
    if latest.exists():
        run.restore(latest)
        if member.leads:
            click.echo(f"going on after {run.images_seen} images")
    for report in train(
        run, criterion, data, team=member, output=output, validation=validation, compiled=compiled
    ):
        click.echo(json.dumps({name: round(value, 5) for name, value in report.items()}))


def load_criterion(recipe: Recipe, files: Files) -> Criterion:
    """Load the networks of the losses that count."""
    weights, lpips = recipe.losses, None
    kind: type[Lpips] = LpipsAlex if recipe.lpips_network == "alex" else LpipsVgg
    if (weights.lpips or weights.inner_lpips) and files.lpips_features and files.lpips_heads:
        lpips = kind.load(features=files.lpips_features, heads=files.lpips_heads)
    identity = Identity.load(files.identity) if weights.identity and files.identity else None
    moco = Moco.load(files.moco) if weights.moco and files.moco else None
    return Criterion(weights, lpips=lpips, identity=identity, moco=moco, lpips_network=recipe.lpips_network)


def hash_files(recipe: Recipe, files: Files) -> dict[str, str]:
    """Return the hashes of the files that decide the outcome of a run."""
    weights = recipe.losses
    counts = {
        "generator": True,
        "backbone": True,
        "lpips_features": weights.lpips or weights.inner_lpips,
        "lpips_heads": weights.lpips or weights.inner_lpips,
        "identity": weights.identity,
        "moco": weights.moco,
    }
    named = {name: getattr(files, name) for name, count in counts.items() if count}
    return {name: weight_files.sha256(path) for name, path in named.items() if path}


def load_set(recipe: Recipe, images: Path, pairs: Path | None, member: team.Team) -> TrainingSet:
    """Read a folder of photos, and say what was left out."""
    found = TrainingSet.load(recipe, images, pairs)
    if member.leads:
        click.echo(f"{len(found)} photos from {images}")
        for line in left_out(found.skipped):
            click.echo(line)
    return found


def data_fingerprint(data: TrainingSet) -> str:
    """Return what tells one training set from another."""
    return fingerprint(data.names, data.photos, *([] if data.partners is None else [data.partners]))
