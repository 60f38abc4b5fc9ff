"""Attack the reader of engines with damaged files: ``python benchmarks/fuzz.py --seconds 60 --json FILE``.

Each input is a good engine with one to four mutations that know the format: of the archive's bytes, of the
manifest's fields, and of the graphs' operators, attributes, shapes, constants and wiring. It is opened and
run on every backend in a child process that is watched. Outcomes:

    refused   psp_rt raised its own error: what should happen to most
    ran       the mutation was harmless, and pictures came out
    failed    another exception escaped
    died      the child ended by a signal, used more memory, or took longer than allowed

Seeds are numbered, so that ``--only N`` repeats one input.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.report import provenance
from psp_rt import PspError, Translator
from psp_rt.engine.walk import OPERATORS
from psp_rt.files import write_atomically
from tests.models import tiny_engine

BACKENDS = ("onnxruntime", "openvino")
MAX_SECONDS, MAX_MIB = 5.0, 512.0  # for one input on one backend
ODD = (
    0,
    1,
    -1,
    2,
    3,
    7,
    8,
    64,
    255,
    256,
    1 << 16,
    1 << 30,
    (1 << 31) - 1,
    -(1 << 31),
    (1 << 63) - 1,
    -(1 << 63),
)
TYPES = (TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT16)

Files = dict[str, bytes]


def mutated(number: int, seeds: Sequence[Files]) -> tuple[Files, dict[str, Any], bytes | None]:
    """Return the members, manifest changes and, for damage to the archive, a seed for its bytes."""
    rng = random.Random(number)
    files = dict(rng.choice(seeds))
    kind = rng.choices(("graph", "manifest", "archive"), (8, 1, 1))[0]
    if kind == "archive":
        return files, {}, rng.randbytes(8)
    if kind == "manifest":
        return files, manifest_change(rng), None
    name = rng.choice([name for name in files if name.endswith(".onnx")])
    model = onnx.load_model_from_string(files[name])
    for _ in range(rng.randint(1, 4)):
        rng.choice(MUTATIONS)(rng, model.graph)
    files[name] = model.SerializeToString()
    return files, {}, None


def manifest_change(rng: random.Random) -> dict[str, Any]:
    """Return one manifest field with an odd value."""
    name = rng.choice(("num_styles", "style_dim", "output", "input", "noise", "precision", "members", "task"))
    values: tuple[Any, ...] = (
        rng.choice(ODD),
        [],
        {},
        None,
        "x",
        {"height": rng.choice(ODD), "width": rng.choice(ODD)},
        1e308,
    )
    return {name: rng.choice(values)}


def change_operator(rng: random.Random, graph: onnx.GraphProto) -> None:
    """Give a node another operator."""
    rng.choice(graph.node).op_type = rng.choice(
        (*OPERATORS, "Mod", "Range", "GatherElements", "Loop", "TopK")
    )


def change_attribute(rng: random.Random, graph: onnx.GraphProto) -> None:
    """Change a number of an attribute, or add one."""
    node = rng.choice(graph.node)
    if node.attribute and rng.random() < 0.8:
        attribute = rng.choice(node.attribute)
        if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(ODD)
        else:
            attribute.i = rng.choice(ODD)
        return
    name = rng.choice(("axis", "axes", "pads", "group", "perm", "keepdims", "to", "strides", "kernel_shape"))
    value = (
        rng.choice(ODD)
        if name in ("axis", "group", "keepdims", "to")
        else [rng.choice(ODD) for _ in range(4)]
    )
    node.attribute.append(helper.make_attribute(name, value))


def change_wiring(rng: random.Random, graph: onnx.GraphProto) -> None:
    """Connect an input of a node to another value, drop it, or add one."""
    node = rng.choice(graph.node)
    known = [value.name for value in (*graph.input, *graph.initializer)] + [
        out for n in graph.node for out in n.output
    ]
    inputs = list(node.input)
    if inputs and rng.random() < 0.7:
        inputs[rng.randrange(len(inputs))] = rng.choice((*known, ""))
    elif inputs and rng.random() < 0.5:
        inputs.pop()
    else:
        inputs.append(rng.choice(known))
    del node.input[:]
    node.input.extend(inputs)


def change_constant(rng: random.Random, graph: onnx.GraphProto) -> None:
    """Change the content or the shape of an initializer."""
    inline = [t for t in graph.initializer if t.data_location != TensorProto.EXTERNAL]
    if not inline or rng.random() < 0.3:
        tensor = rng.choice(graph.initializer)
        if tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(ODD)
        return
    tensor = rng.choice(inline)
    array = numpy_helper.to_array(tensor).copy()
    if array.size and array.dtype == np.int64:
        array.flat[rng.randrange(array.size)] = rng.choice(ODD)
    elif array.size:
        array = np.resize(array, rng.choice(((1,), (2, 3), (1, 1, 1, 1), (3, 1, 2, 1, 1), ())))
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def insert_node(rng: random.Random, graph: onnx.GraphProto) -> None:
    """Put a node with odd constants in front of another one."""
    at = rng.randrange(len(graph.node))
    target = graph.node[at]
    if not target.input:
        return
    place, made = rng.randrange(len(target.input)), f"inserted{len(graph.node)}"
    constants = []
    for index in range(rng.randint(0, 3)):
        values = np.array([rng.choice(ODD) for _ in range(rng.randint(1, 4))], np.int64)
        constants.append(numpy_helper.from_array(values, f"{made}_{index}"))
    inputs = [target.input[place], *(tensor.name for tensor in constants)]
    graph.initializer.extend(constants)
    node = helper.make_node(rng.choice(tuple(OPERATORS)), inputs, [made])
    nodes = list(graph.node)
    target.input[place] = made
    nodes.insert(at, node)
    del graph.node[:]
    graph.node.extend(nodes)


def change_input(rng: random.Random, graph: onnx.GraphProto) -> None:
    """Change the type or a size of a graph's input or output."""
    value = rng.choice((*graph.input, *graph.output)).type.tensor_type
    if rng.random() < 0.5 or not value.shape.dim:
        value.elem_type = rng.choice(TYPES)
    else:
        value.shape.dim[rng.randrange(len(value.shape.dim))].dim_value = rng.choice(ODD)


MUTATIONS: tuple[Callable[[random.Random, onnx.GraphProto], None], ...] = (
    *(change_operator, change_attribute, change_wiring, change_constant, insert_node, change_input),
)


def write(path: Path, number: int, seeds: Sequence[Files]) -> None:
    """Write one input."""
    files, changes, damage = mutated(number, seeds)
    tiny_engine.write_raw(path, files, **changes)
    if damage is not None:
        rng, data = random.Random(damage), bytearray(path.read_bytes())
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.randint(1, len(data))] if rng.random() < 0.3 else data)


def attack(numbers: Sequence[int], backend: str, seeds: Sequence[Files], report: Connection) -> None:
    """Open and run inputs in this process, reporting (number, outcome, seconds, MiB) for each."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)  # the runtimes print
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # a disk would take most of the time
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        path = Path(folder) / "attack.engine"
        for number in numbers:
            report.send((number, "started", 0.0, 0.0))
            try:
                write(path, number, seeds)
            except Exception:  # the mutated graph cannot be written down: no input
                report.send((number, "not writable", 0.0, 0.0))
                continue
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            start = time.perf_counter()
            try:
                with Translator(path, device="cpu", backend=backend, threads=1) as translator:  # type: ignore[arg-type]
                    translator.generate(translator.sample(1))
                    if translator.manifest.input is not None:
                        spec = translator.manifest.input
                        translator.run(np.zeros((spec.height, spec.width, spec.channels), np.uint8))
                outcome = "ran"
            except PspError:
                outcome = "refused"
            except Exception as error:
                outcome = f"failed: {type(error).__name__}: {error}"[:200]
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            report.send((number, outcome, time.perf_counter() - start, grown))
    report.send(None)


def campaign(
    seeds: Sequence[Files], backend: str, first: int, seconds: float, only: int | None
) -> dict[str, Any]:
    """Attack one backend until time is up; a child that dies is replaced, and its input remembered."""
    outcomes: collections.Counter[str] = collections.Counter()
    bad: list[dict[str, Any]] = []
    worst_seconds = worst_mib = 0.0
    context, number, end = multiprocessing.get_context("fork"), first, time.monotonic() + seconds
    while time.monotonic() < end:
        numbers = [only] if only is not None else range(number, number + 5000)
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=attack, args=(numbers, backend, seeds, sender))
        child.start()
        sender.close()
        current = number
        while True:
            silent = not receiver.poll(8 * MAX_SECONDS)  # of wall time: the machine may be busy
            try:
                message = None if silent else receiver.recv()
            except EOFError:
                message, silent = None, True
            if silent:  # the child died or hangs
                if child.is_alive():
                    child.kill()
                child.join()
                reason = f"died: exit status {child.exitcode}"
                outcomes["died"] += 1
                bad.append({"seed": current, "outcome": reason})
                number = current + 1
                break
            if message is None:
                number = current + 1
                break
            current, outcome, took, grown = message
            if outcome != "started":
                outcomes[outcome.partition(":")[0]] += 1
                worst_seconds, worst_mib = max(worst_seconds, took), max(worst_mib, grown)
                if outcome.startswith("failed") or took > MAX_SECONDS or grown > MAX_MIB:
                    bad.append({"seed": current, "outcome": outcome, "seconds": took, "mib": grown})
            elif time.monotonic() > end:
                child.kill()
                child.join()
                break
        receiver.close()
        if only is not None:
            break
    return {
        "inputs": sum(outcomes.values()),
        "outcomes": dict(outcomes),
        "worst_seconds": round(worst_seconds, 3),
        "worst_mib": round(worst_mib, 1),
        "bad": bad[:100],
    }


def main(arguments: Sequence[str]) -> int:
    """Run the campaign; the exit status is 1 if an input did harm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="for each backend (default: 60)")
    parser.add_argument("--first", type=int, default=0, help="number of the first input (default: 0)")
    parser.add_argument("--only", type=int, help="repeat this input alone")
    parser.add_argument("--backend", choices=BACKENDS, action="append", help="default: both")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args(arguments)
    seeds = [tiny_engine.members("rgb"), tiny_engine.members("labels")]
    found = {}
    for backend in args.backend or BACKENDS:
        found[backend] = campaign(seeds, backend, args.first, args.seconds, args.only)
        print(backend, json.dumps(found[backend], indent=1))
    if args.json is not None:
        machine = provenance.collect(arguments, threads=1, program="benchmarks/fuzz.py")
        write_atomically(args.json, json.dumps({"made_by": machine, "backends": found}, indent=1) + "\n")
    return int(any(result["bad"] for result in found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
