"""Latency against the paper, the original formulation and the machine's limit.

    python benchmarks/latency.py                          the official model with drawn weights
    python benchmarks/latency.py --size 256 --batch 1 4   a smaller generator, two batch sizes
    python benchmarks/latency.py --encoder psp w naive_w+ --html page.html     the paper's three encoders
    python benchmarks/latency.py --scaling --rounds 3 --html page.html         batches, sizes and clones too
    python benchmarks/latency.py my.engine --checkpoint my.pt --json my.json
    python benchmarks/latency.py --compare before.json after.json

Needs no network and no pretrained file. An interrupt (Ctrl-C) keeps what was measured until then.

Estimated for two cores: the first line takes half an hour, most of it in PyTorch. --scaling adds two smaller
generators, batches of 2, 4 and 8 and up to four clones: two hours, or one with --rounds 3.
Contenders on a GPU take part if there is one.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import session
from benchmarks.contenders.all import ENTRIES
from benchmarks.measure.limits import Footprint
from benchmarks.measure.timing import Progress
from benchmarks.report import compare, page, provenance
from benchmarks.report.result import ModelResult, Results, write
from benchmarks.report.tables import all_tables
from benchmarks.session import Settings
from benchmarks.workloads import models
from benchmarks.workloads.models import Architecture
from benchmarks.workloads.workload import Workload, drawn_workload, given_workload
from psp_rt import PspError
from psp_rt.cli.group import INTERRUPTED
from psp_rt.files import check_writable, write_atomically
from psp_rt.hardware import default_threads, probe_driver

BATCHES, CLONES, SIZES = (1, 2, 4, 8), (1, 2, 4), (256, 512, 1024)  # of the scaling


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    names = [entry.name for entry in ENTRIES]
    found = argparse.ArgumentParser(
        prog="latency.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    add("engine", nargs="?", type=Path, metavar="ENGINE", help="measure this engine (before other options)")
    add("--checkpoint", type=Path, metavar="FILE", help="what ENGINE was made from, for PyTorch")
    add(
        "--size",
        "--sizes",
        nargs="+",
        type=int,
        choices=(64, 128, 256, 512, 1024),
        help="of the output (default: 1024; with --scaling: 256 512 1024)",
    )
    add("--encoder", nargs="+", choices=("psp", "w", "naive_w+", "e4e"), default=["psp"])
    add("--batch", nargs="+", type=_positive, default=[1], help="of every stage (default: 1)")
    add("--scaling", action="store_true", help="time and memory of psp_rt against batch, size and clones too")
    add("--clones", nargs="+", type=_positive, help="at work at once (with --scaling: 1 2 4)")
    add("--contenders", nargs="+", choices=names, metavar="NAME", help=f"some of: {', '.join(names)}")
    add("--compile", action="store_true", help="torch.compile too; it compiles for minutes")
    add("--rounds", type=_positive, default=10, help="runs of each call (default: 10)")
    add("--warmup", type=_positive, default=2, help="runs before those (default: 2)")
    add("--threads", type=_positive, help="default: one for each physical core")
    add("--quick", action="store_true", help="a tiny model and two rounds: does the benchmark work?")
    add("--json", type=Path, metavar="FILE")
    add("--markdown", type=Path, metavar="FILE")
    add("--html", type=Path, metavar="FILE", help="one page with plots; needs matplotlib")
    add("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"), help="compare two --json files")
    add("--regression", type=float, default=1.10, metavar="RATIO", help="with --compare (default: 1.10)")
    return found


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    grammar = parser()
    args = grammar.parse_args(arguments)
    if args.checkpoint and not args.engine:
        grammar.error("--checkpoint is for an ENGINE; export it first with: python -m export CHECKPOINT")
    try:
        if args.compare:
            return run_comparison(*args.compare, bound=args.regression)
        for output in (args.json, args.markdown, args.html):
            if output:
                check_writable(output)
        if args.html:
            page.check_matplotlib()
        return run_benchmark(args, arguments)
    except PspError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2


def run_comparison(before: Path, after: Path, *, bound: float) -> int:
    """Print how two runs differ; 1 if the second is slower beyond the bound."""
    changes, remarks = compare.compare(before, after)
    print(compare.as_table(changes, bound).as_text())
    for remark in remarks:
        print(f"note: {remark}")
    return int(any(change.is_regression(bound) for change in changes))


def run_benchmark(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Measure, print and write; 1 if a contender computes something else."""
    settings = chosen_settings(args)
    results = Results(
        provenance=provenance.collect(arguments, threads=settings.threads), settings=asdict(settings)
    )
    try:
        measure_all(results, args, settings, Progress())
        results.complete = True
    except KeyboardInterrupt:
        print("\ninterrupted: what was measured until now follows", file=sys.stderr)
    finally:  # also after an error, to keep what was measured before it
        publish(results, args)
    wrong = any(standing.status == "wrong" for model in results.models for standing in model.standings)
    return int(wrong) if results.complete else INTERRUPTED


def chosen_settings(args: argparse.Namespace) -> Settings:
    """Return how to measure."""
    chosen, not_tried = chosen_contenders(args)
    batches = set(args.batch)
    return Settings(
        batches=tuple(sorted(batches)),
        larger_batches=tuple(sorted(set(BATCHES) - batches)) if args.scaling else (),
        clones=tuple(sorted(set(args.clones or (CLONES if args.scaling else ())))),
        rounds=2 if args.quick else args.rounds,
        warmup=1 if args.quick else args.warmup,
        threads=args.threads or default_threads() or os.cpu_count() or 1,
        processes=1 if args.quick else 3,
        matrix_side=256 if args.quick else 2048,
        copied_bytes=2**20 if args.quick else 2**28,
        contenders=chosen,
        not_tried=not_tried,
    )


def chosen_contenders(args: argparse.Namespace) -> tuple[tuple[str, ...], str]:
    """Return the contenders that take part, and a note on those that need another machine."""
    if args.contenders:
        return tuple(args.contenders), ""
    wanted = [entry for entry in ENTRIES if entry.by_default or (args.compile and "compiled" in entry.name)]
    problem = probe_driver().problem
    if not problem:
        return tuple(entry.name for entry in wanted), ""
    left_out = ", ".join(entry.name for entry in wanted if entry.device == "cuda")
    here = tuple(entry.name for entry in wanted if entry.device == "cpu")
    return here, f"Not tried, since they need a GPU ({problem}): {left_out}."


def measure_all(
    results: Results, args: argparse.Namespace, settings: Settings, progress: session.Progress
) -> None:
    """Measure each model that fits into the memory."""
    batch = max(*settings.batches, *settings.larger_batches, 1)
    if args.engine:
        result = ModelResult(name=args.engine.stem)
        results.models.append(result)
        workload = given_workload(args.engine, args.checkpoint, batch=batch, threads=settings.threads)
        session.measure(result, workload, settings, progress)
        return
    for model in architectures(args):
        result = ModelResult(name=model.name, kind=model.encoder.kind)
        results.models.append(result)
        # Four mixed pictures are a batch, whatever was asked for.
        result.skipped = Footprint.of_architecture(model).shortage(batch=max(*settings.batches, 4))
        if not result.skipped:
            session.measure(result, drawn(model, batch, settings, progress), settings, progress)


def drawn(model: Architecture, batch: int, settings: Settings, progress: session.Progress) -> Workload:
    """Return a model with drawn weights."""
    progress(f"{model.name}: drawing weights", None)
    return drawn_workload(
        model,
        batch=batch,
        threads=settings.threads,
        report=lambda step: progress(f"{model.name}: {step}", None),
    )


def architectures(args: argparse.Namespace) -> Iterator[Architecture]:
    """Yield the models asked for."""
    for kind in args.encoder:
        if args.quick:
            yield models.tiny(kind)
        else:
            sizes = args.size or (SIZES if args.scaling else SIZES[-1:])
            yield from (models.official(kind, size) for size in sizes)


def publish(results: Results, args: argparse.Namespace) -> None:
    """Print the tables and write the files, if there is anything."""
    if not any(model.skipped or model.standings or model.fresh for model in results.models):
        return
    if args.json:
        write(args.json, results)
    tables = list(all_tables(results))
    print("\n".join(table.as_text() for table in tables))
    if args.html:
        write_atomically(args.html, page.page(results, tables))
    if args.markdown:
        write_atomically(args.markdown, "\n".join(table.as_markdown() for table in tables).lstrip() + "\n")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
