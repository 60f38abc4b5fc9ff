"""The paper's ablation: W, naive W+ and pSp encoders for one generator, and pSp without identity loss.

    python benchmarks/encoders.py --generator G.pt --images photos --validation held-out \
        --identity mobilefacenet.ckpt --lpips-features alexnet.pth --lpips-heads alex.pth \
        --count 200000 --output runs/encoders

Each encoder sees the same photos in the same order, from the same seed. All are then measured by
`python -m trainer evaluate`, and a table, a JSON file and a sheet are written into the output folder.
Run the same command again to resume. On a CPU, one process for each core is fastest:

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 benchmarks/encoders.py --small ...

--quick runs all of it in tiny sizes with drawn files; its figures mean nothing.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.report import provenance
from benchmarks.training_speed import drawn_files
from benchmarks.training_speed.sizes import SMALL, TINY, TINY_GENERATOR
from psp_rt import PspError
from psp_rt.files import check_writable, write_atomically
from trainer import recipe as tasks
from trainer.cli.encoder import Files, run_training
from trainer.cli.evaluate import evaluate
from trainer.evaluation.measure import Candidate
from trainer.evaluation.tables import Comparison
from trainer.loop import distributed as team
from trainer.losses.lpips import LpipsAlex

PROGRAM = "benchmarks/encoders.py"
VARIANTS = {
    "w": ("encoder=w",),
    "naive-w+": ("encoder=naive_w+",),
    "psp": ("encoder=psp",),
    "psp-without-identity": ("encoder=psp", "losses.identity=0"),
}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is trained, and on which data."""

    files: Files
    identity_network: Path | None
    changes: tuple[str, ...]
    output: Path
    quick: bool = False

    def variants(self) -> dict[str, tuple[str, ...]]:
        """Return the encoders with their changes to the recipe. Without a file none has an identity loss."""
        if self.files.identity:
            return {name: (*self.changes, *own) for name, own in VARIANTS.items()}
        kept = {name: own for name, own in VARIANTS.items() if name != "psp-without-identity"}
        return {name: (*self.changes, *own, "losses.identity=0") for name, own in kept.items()}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(
        prog="encoders.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    add("--generator", type=Path, metavar="FILE", help="the StyleGAN2 that all encoders are trained for")
    add("--images", type=Path, metavar="DIR", help="photos to train on")
    add("--validation", type=Path, metavar="DIR", help="photos to measure on")
    add("--identity", type=Path, metavar="FILE", help="network of the identity loss; without, none has one")
    add("--identity-network", type=Path, metavar="FILE", help="to measure by (default: that of the loss)")
    add("--lpips-features", type=Path, metavar="FILE")
    add("--lpips-heads", type=Path, metavar="FILE")
    add("--backbone", type=Path, metavar="FILE", help="ArcFace IR-SE50 to start from")
    add("--count", type=int, default=200_000, help="photos that each encoder sees (default: 200000)")
    add("--small", action="store_true", help=f"for 64 pixels: {', '.join(SMALL)}")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="change the recipe of all encoders")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--output", type=Path, metavar="DIR", help="a folder for each encoder, and the comparison")
    add("--json", type=Path, metavar="FILE", help="default: OUTPUT/comparison.json")
    add("--quick", action="store_true", help="tiny networks, drawn files: does the experiment work?")
    return found


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    grammar = parser()
    args = grammar.parse_args(arguments)
    try:
        if args.quick:
            with tempfile.TemporaryDirectory() as folder:
                return run(quick_experiment(Path(folder), args), args, arguments)
        missing = [name for name in ("generator", "images", "validation", "output", "lpips_features",
                                     "lpips_heads") if getattr(args, name) is None]  # fmt: skip
        if missing:
            grammar.error(f"name {', '.join('--' + name.replace('_', '-') for name in missing)}, or --quick")
        return run(experiment(args), args, arguments)
    except PspError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


def experiment(args: argparse.Namespace) -> Experiment:
    """Return what the command line asks for."""
    return Experiment(
        files=_files(args, args.generator, args.images, args.validation),
        identity_network=args.identity_network or args.identity,
        changes=(*(SMALL if args.small else ()), f"images={args.count}", *args.set),
        output=args.output,
    )


def quick_experiment(folder: Path, args: argparse.Namespace) -> Experiment:
    """Return the smallest experiment that goes through all steps."""
    args.lpips_features, args.lpips_heads = drawn_files.lpips(folder)
    args.identity = drawn_files.identity(folder / "identity.ckpt")
    files = _files(
        args,
        drawn_files.generator(folder / "generator.pt", TINY_GENERATOR),
        drawn_files.photos(folder / "photos", count=4, size=64),
        drawn_files.photos(folder / "validation", count=2, size=64, seed=1),
    )
    return Experiment(
        files=files,
        identity_network=args.identity,
        changes=(*TINY, "images=4", *args.set),
        output=args.output or folder / "runs",
        quick=True,
    )


def run(todo: Experiment, args: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Train every encoder, then measure all of them."""
    results = args.json or todo.output / "comparison.json"
    if args.json:
        check_writable(args.json)
    with team.joined(args.device) as member:
        for name, changes in todo.variants().items():
            if member.leads:
                print(f"== {name}", flush=True)
            recipe = tasks.default("inversion", changes)
            run_training(recipe, todo.files, todo.output / name, member, compiled=False)
        if member.leads:
            found = compare(todo, member.device, arguments)
            print(found.as_text())
            write_atomically(results, json.dumps(found.as_json(), indent=1, allow_nan=False) + "\n")
            write_atomically(results.with_suffix(".md"), found.as_markdown())
    return 0


def compare(todo: Experiment, device: torch.device, arguments: Sequence[str]) -> Comparison:
    """Measure the encoders that were trained."""
    files = todo.files
    assert files.validation
    assert files.lpips_features
    assert files.lpips_heads
    folders = [todo.output / name for name in todo.variants()]
    found = evaluate(
        [Candidate.load(folder, device) for folder in folders],
        files.validation,
        device=device,
        identity_network=todo.identity_network,
        lpips=LpipsAlex.load(features=files.lpips_features, heads=files.lpips_heads),
        sheet_file=todo.output / "comparison.png",
    )
    extra = {
        "quick": todo.quick,
        "provenance": provenance.collect(arguments, threads=torch.get_num_threads(), program=PROGRAM),
        "recipes": {folder.name: _config(folder)["recipe"] for folder in folders},
        "training": {folder.name: _log(folder) for folder in folders},
    }
    return Comparison(**{**vars(found), "extra": extra})


def _files(args: argparse.Namespace, generator: Path, images: Path, validation: Path) -> Files:
    return Files(
        generator=generator,
        images=images,
        pairs=None,
        validation=validation,
        validation_pairs=None,
        backbone=args.backbone,
        lpips_features=args.lpips_features,
        lpips_heads=args.lpips_heads,
        identity=args.identity,
        moco=None,
    )


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def _log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
