"""Attack everything that reads files or requests: ``python benchmarks/fuzz.py --seconds 60 --json FILE``.

    engines       archive, manifest and graphs of engines, opened and run on each backend
    pictures      files of every format that Pillow writes
    checkpoints   files of PyTorch and safetensors, as export and trainer read them
    bodies        requests to the server

Each input is a good one with a few mutations that know the format. It is used in a child process that is
watched. Outcomes:

    refused   psp_rt raised its own error: what should happen to most
    ran       the mutation was harmless
    failed    another exception escaped
    not writable    the mutated input cannot be written down; it is left out
    died      the child ended by a signal, used more memory, or took longer than allowed

Inputs are numbered, so that ``--only N`` repeats one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.fuzzing.campaign import Target, campaign
from benchmarks.report import provenance
from psp_rt.files import write_atomically


def _engines() -> list[Target]:
    from benchmarks.fuzzing.engines import Engines

    return [Engines("onnxruntime"), Engines("openvino")]


def _pictures() -> list[Target]:
    from benchmarks.fuzzing.pictures import Pictures

    return [Pictures()]


def _checkpoints() -> list[Target]:
    from benchmarks.fuzzing.checkpoints import Checkpoints

    return [Checkpoints()]


def _bodies() -> list[Target]:
    from benchmarks.fuzzing.bodies import Bodies

    return [Bodies()]


# Imported when they are attacked: each brings libraries of its own into the process that is forked.
TARGETS: dict[str, Callable[[], list[Target]]] = {
    "pictures": _pictures,
    "bodies": _bodies,
    "engines": _engines,
    "checkpoints": _checkpoints,
}


def main(arguments: Sequence[str]) -> int:
    """Run the campaigns; the exit status is 1 if an input did harm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="for each campaign (default: 60)")
    parser.add_argument("--first", type=int, default=0, help="number of the first input (default: 0)")
    parser.add_argument("--only", type=int, help="repeat this input alone")
    parser.add_argument("--target", choices=TARGETS, action="append", help="default: all")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args(arguments)
    found = {}
    for name in args.target or TARGETS:
        for target in TARGETS[name]():
            found[target.name] = campaign(target, args.first, args.seconds, args.only)
            print(target.name, json.dumps(found[target.name], indent=1))
    if args.json is not None:
        machine = provenance.collect(arguments, threads=1, program="benchmarks/fuzz.py")
        write_atomically(args.json, json.dumps({"made_by": machine, "targets": found}, indent=1) + "\n")
    return int(any(result["bad"] for result in found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
