"""Train the models that ship: ``make train-demo FACES=... HELD_OUT=... LPIPS=... HEADS=... IDENTITY=...``.

On a GPU: a 128x128 StyleGAN2 of the portraits, then a pSp encoder for each task against it, as in the
paper. Without one: encoders and a generator together (`python -m trainer joint`), because a generator
alone would take days: first at 64x64, mostly by reconstruction, then at 128x128 against a discriminator.
Every step resumes where it was when the same command is run again.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

MODELS = Path(__file__).parent
LIMIT_BYTES = 8_000_000  # a model that ships
TASKS = ("sketch", "inversion", "super-resolution")
# Widths for which encoder and generator together stay below the limit, with weights stored as FP16.
GENERATOR = {"size": 128, "channels": [160, 160, 128, 96, 64, 32], "style_dim": 128, "images": 600_000}
ENCODER = {
    "widths": [24, 48, 96, 96],
    "depths": [1, 2, 2, 1],
    "head_width": 52,
    "input_size": 128,
    "batch": 32,
    "precision": "bf16",
    "learning_rate": 1e-3,  # ten times the official one: the backbone starts from random weights
    "images": 400_000,
}
SMALL_COUNT, GROWN_COUNT = 300_000, 106_000  # photos, on a CPU
SHARPENING = 10_000  # photos: the last of the small ones, against a discriminator
GROWN = {
    "size": 128,
    "head_width": 50,  # heads as narrow as the limit needs
    # At 128 pixels the default discriminator was too strong, and pictures looked like paintings.
    "adversarial_from": 0,
    "adversarial": 0.05,
    "adversarial_speed": 0.4,
    "discriminator_rate": 1e-3,
    "closer": 0.5,  # without it, eyes were uneven after 56,000 photos
    "border": 0.5,  # without it, nearly every picture had a rim
}
FACTORS = [4, 8]  # of super-resolution at 128 pixels; the official ones are for 256

Command = list[str]


def commands(args: argparse.Namespace) -> Iterator[Command]:
    """Yield the commands, in their order."""
    trainings = on_gpu(args) if args.device == "cuda" else on_cpu(args)
    yield from trainings
    for task in TASKS:
        checkpoint = checkpoint_of(args, task)
        yield [
            *module("export", checkpoint),
            *options({"output": args.models / f"{task}.engine", "weights": "fp16"}),
            *options({"alignment": "ffhq", "default-layers": "3-"}),
        ]
        # Which codes are usual, from photos of others than those that it learned from.
        engine = args.models / f"{task}.engine"
        yield [*module("export", "describe", engine), *options({"pictures": args.held_out}), "--from-photos"]


def on_cpu(args: argparse.Namespace) -> Iterator[Command]:
    """Yield joint training at two sizes, one process for each core."""
    common = [
        *module("torch.distributed.run", "--nproc-per-node", args.processes, "-m", "trainer", "joint"),
        *(part for task in TASKS for part in ("--task", task)),
        *options(data_options(args) | {"device": "cpu"}),
    ]
    small, count = args.output / "joint-64", args.count or SMALL_COUNT
    first = {"images": count, "adversarial_from": max(count - SHARPENING, 0)}
    yield [*common, *options({"output": small}), *changes(first)]
    grown = GROWN | {"images": args.count or GROWN_COUNT}
    likeness = {"identity": args.identity} if args.identity else {}
    grown |= {"identity": 0.2} if args.identity else {}
    starts = (part for task in TASKS for part in ("--start-from", str(small / f"{task}.pt")))
    yield [*common, *options({"output": args.output / "joint"} | likeness), *changes(grown), *starts]


def on_gpu(args: argparse.Namespace) -> Iterator[Command]:
    """Yield the generator's training, then an encoder's for each task."""
    generator = args.output / "generator"
    settings = GENERATOR | ({"images": args.count} if args.count else {})
    yield [
        *module("trainer", "generator"),
        *options({"images": args.faces, "validation": args.held_out, "output": generator, "device": "cuda"}),
        *changes(settings),
    ]
    for task in TASKS:
        settings = dict(ENCODER) | ({"images": args.count} if args.count else {})
        settings |= {"factors": FACTORS} if task == "super-resolution" else {}
        with_identity = {"identity": args.identity} if task != "sketch" else {}
        yield [
            *module("trainer", "encoder"),
            *changes(settings),
            *options({"task": task, "generator": generator / "latest.pt", "device": "cuda"}),
            *options(data_options(args) | with_identity | {"output": args.output / task}),
        ]


def checkpoint_of(args: argparse.Namespace, task: str) -> Path:
    """Return the file that training leaves for a task."""
    if args.device == "cuda":
        return Path(args.output / task / "latest.pt")
    return Path(args.output / "joint" / f"{task}.pt")


def data_options(args: argparse.Namespace) -> dict[str, object]:
    """Return what both kinds of encoder training read."""
    return {
        "images": args.faces,
        "validation": args.held_out,
        "lpips-features": args.lpips_features,
        "lpips-heads": args.lpips_heads,
    }


def module(name: str, *arguments: object) -> Command:
    """Return the start of a command that runs one of our packages."""
    return [sys.executable, "-m", name, *map(str, arguments)]


def options(values: dict[str, object]) -> Command:
    """Return ``--name value`` for each."""
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def changes(settings: dict[str, object]) -> Command:
    """Return ``--set name=value`` for each."""
    return [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    found.add_argument("--faces", type=Path, required=True, help="aligned portraits to learn from")
    found.add_argument("--held-out", type=Path, required=True, help="portraits of others, to measure on")
    found.add_argument("--lpips-features", type=Path, required=True, help="AlexNet, torchvision's format")
    found.add_argument("--lpips-heads", type=Path, required=True, help="LPIPS v0.1, alex.pth")
    found.add_argument("--identity", type=Path, help="ArcFace IR-SE50 or MobileFaceNet: for likeness")
    found.add_argument("--device", choices=("cpu", "cuda"), required=True)
    found.add_argument("--processes", type=int, default=2, help="on a CPU: one for each core (default: 2)")
    found.add_argument("--count", type=int, help="photos for each training; default: as the models had")
    found.add_argument("--output", type=Path, default=Path("runs/models"), help="run folders")
    found.add_argument("--models", type=Path, default=MODELS, help="where the engines go")
    found.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    return found


def main(arguments: Sequence[str]) -> int:
    """Run the commands one after the other; stop at the first that fails."""
    grammar = parser()
    args = grammar.parse_args(arguments)
    if args.device == "cuda" and args.identity is None:
        grammar.error("--device cuda trains with the identity loss; name its network with --identity FILE")
    for command in commands(args):
        print("$", shlex.join(command), flush=True)
        if args.dry_run:
            continue
        status = subprocess.run(command, check=False).returncode
        if status:
            print("this command failed; fix the cause and run the same again to resume", file=sys.stderr)
            return status
    too_large = [path.name for path in args.models.glob("*.engine") if path.stat().st_size > LIMIT_BYTES]
    if too_large and not args.dry_run:
        print(f"above {LIMIT_BYTES} bytes: {', '.join(too_large)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
