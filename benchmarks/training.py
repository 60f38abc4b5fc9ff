"""Training speed: images a second against a plain PyTorch loop over the same networks.

    python benchmarks/training.py --json training.json           official sizes; for a GPU
    python benchmarks/training.py --small --device cpu           64 pixels, a small backbone
    python benchmarks/training.py --tasks sketch generator       some of the tasks

Files and weights are drawn, so nothing has to be downloaded. The loops take turns in one process. The
identity loss uses a MobileFaceNet; --identity names the file of another network. An interrupt (Ctrl-C) keeps
the tasks that are done.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.measure.timing import Call, Progress, Timing, measure
from benchmarks.report import provenance
from benchmarks.report.statistics import ratio
from benchmarks.report.tables import Table
from benchmarks.training_speed import drawn_files
from benchmarks.training_speed.loops import Files, OurEncoderLoop, OurGeneratorLoop, Spent
from benchmarks.training_speed.setups import (
    PLAIN,
    Loop,
    Sizes,
    chosen_sizes,
    encoder_loops,
    generator_loops,
    plain_sizes,
)
from psp_rt import PspError
from psp_rt.cli.group import INTERRUPTED
from psp_rt.files import check_writable, write_atomically
from trainer import recipe as tasks
from trainer.cli.evaluate import describe_machine
from trainer.loop import distributed as team
from trainer.recipe import Recipe

PROGRAM, FORMAT, VERSION = "benchmarks/training.py", "psp_rt.training_speed", 1
GENERATOR = "generator"
DEFAULT_TASKS = ("inversion", "sketch", "super-resolution", "segmentation", GENERATOR)


@dataclass
class TaskResult:
    """The measurements of one task."""

    task: str
    timings: list[Timing]
    spent: dict[str, Spent] = field(default_factory=dict)
    networks: dict[str, float] = field(default_factory=dict)  # share of a step inside the networks

    def as_json(self) -> dict[str, Any]:
        """Return everything, measured and derived."""
        plain = next(timing for timing in self.timings if timing.contender == PLAIN)
        rows = []
        for timing in self.timings:
            spent = self.spent[timing.contender]
            rows.append(
                {
                    **asdict(timing),
                    **timing.summary(),
                    "waited_for_data": spent.data / spent.total if spent.total else None,
                    "inside_networks": self.networks.get(timing.contender),
                    "faster_than_plain": asdict(ratio(plain.samples_ms, timing.samples_ms)),
                }
            )
        return {"task": self.task, "loops": rows}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(
        prog="training.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    known = (*tasks.TASKS, GENERATOR)
    add(
        "--tasks",
        nargs="+",
        choices=known,
        default=list(DEFAULT_TASKS),
        metavar="TASK",
        help=", ".join(known),
    )
    add("--small", action="store_true", help="a generator of 64 pixels and a small backbone")
    add("--batch", type=int, help="photos a step (default: the recipe's)")
    add("--steps", type=int, default=16, help="steps of one timed call (default: 16)")
    add("--rounds", type=int, default=5, help="timed calls of each loop (default: 5)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--identity", type=Path, metavar="FILE", help="network of the identity loss (default: drawn)")
    add("--json", type=Path, metavar="FILE")
    add("--quick", action="store_true", help="tiny networks, one round: does the benchmark work?")
    return found


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    args = parser().parse_args(arguments)
    if args.quick:
        args.steps, args.rounds = 2, 1
    try:
        if args.json:
            check_writable(args.json)
        device = team.join(args.device).device
        with tempfile.TemporaryDirectory() as folder:
            return run(args, arguments, Path(folder), device)
    except PspError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


def run(args: argparse.Namespace, arguments: Sequence[str], folder: Path, device: torch.device) -> int:
    """Measure each task, print and write."""
    origin = provenance.collect(arguments, threads=torch.get_num_threads(), program=PROGRAM)
    sizes, results, complete = chosen_sizes(args), list[TaskResult](), False
    progress = Progress()
    try:
        for task in args.tasks:
            results.append(measure_task(task, sizes, args, folder, device, progress))
        complete = True
    except KeyboardInterrupt:
        print("\ninterrupted: what was measured until now follows", file=sys.stderr)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "complete": complete,
        "quick": args.quick,
        "provenance": {**origin, **describe_machine(device)},
        "settings": {"steps": args.steps, "rounds": args.rounds, **plain_sizes(sizes)},
        "tasks": [result.as_json() for result in results],
    }
    print(table(content).as_text())
    if args.json:
        write_atomically(args.json, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return 0 if complete else INTERRUPTED


def measure_task(
    task: str, sizes: Sizes, args: argparse.Namespace, folder: Path, device: torch.device, progress: Progress
) -> TaskResult:
    """Time the loops of a task in turns."""
    progress(f"{task}: preparing", None)
    images = drawn_files.photos(folder / "photos", count=sizes.photos, size=sizes.photo_size)
    if task == GENERATOR:
        batch, loops = sizes.gan.batch, generator_loops(sizes, Files(images=images), device)
    else:
        recipe = tasks.with_sizes(tasks.default(task, sizes.changes), sizes.generator)
        files = Files(images=images, pairs=_pairs(recipe, images, folder))
        batch, loops = recipe.batch, encoder_loops(recipe, sizes, files, args.identity, folder, device)
    calls = []
    for name, loop in loops.items():
        timing = Timing(contender=name, stage=task, batch=batch, images=batch * args.steps)
        calls.append(Call(timing=timing, run=_steps(loop, args.steps)))
    measure(calls, rounds=args.rounds, warmup=1, progress=progress)
    result = TaskResult(task, [call.timing for call in calls])
    for name, loop in loops.items():
        if isinstance(loop, OurEncoderLoop | OurGeneratorLoop):
            result.networks[name] = loop.networks_share(args.steps)
        result.spent[name] = loop.spent
    return result


def table(content: dict[str, Any]) -> Table:
    """Return the result for the terminal."""
    rows = []
    for task in content["tasks"]:
        for row in task["loops"]:
            networks, faster = row["inside_networks"], row["faster_than_plain"]
            rows.append(
                (
                    task["task"],
                    row["contender"],
                    f"{row['batch'] * 1000 * content['settings']['steps'] / row['p50_ms']:.2f}",
                    f"{faster['value']:.2f}",
                    f"{row['waited_for_data']:.1%}",
                    "" if networks is None else f"{networks:.1%}",
                )
            )
    return Table(
        title="Training, images a second",
        columns=("task", "loop", "images/s", "x plain", "waited for data", "inside the networks"),
        rows=rows,
        note=f"On {content['provenance']['device']}; medians of {content['settings']['rounds']} calls of "
        f"{content['settings']['steps']} steps, in turns after one of warm-up."
        + (" Tiny networks: the numbers say nothing." if content["quick"] else ""),
    )


def _pairs(recipe: Recipe, images: Path, folder: Path) -> Path | None:
    if recipe.source != "pairs":
        return None
    names = [path.name for path in images.iterdir()]
    return drawn_files.label_maps(folder / "labels", names, size=512, labels=recipe.labels or 2)


def _steps(loop: Loop, count: int) -> Callable[[], None]:
    return lambda: loop.steps(count)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
