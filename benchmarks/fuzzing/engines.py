"""Engines: a good one with one to four mutations that know the format.

They strike the archive's bytes, the manifest's fields, and the graphs' operators, attributes, shapes,
constants and wiring.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.fuzzing.damage import ODD, damaged
from psp_rt import Translator
from psp_rt.engine.walk import OPERATORS
from psp_rt.hardware.choose import BackendName
from tests.models import tiny_engine

TYPES = (TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT16)

Files = dict[str, bytes]


@dataclass(frozen=True)
class Engines:
    """Opens engines on one backend, and runs them."""

    backend: BackendName

    @property
    def name(self) -> str:
        """Of the campaign."""
        return f"engines on {self.backend}"

    def make(self, number: int, folder: Path) -> Path:
        """Write the engine of a number."""
        files, changes, damage = mutated(number, SEEDS)
        path = folder / "attack.engine"
        tiny_engine.write_raw(path, files, **changes)
        if damage is not None:
            path.write_bytes(damaged(path.read_bytes(), random.Random(damage)))
        return path

    def use(self, made: Any) -> None:
        """Open an engine, and make pictures."""
        with Translator(made, device="cpu", backend=self.backend, threads=1) as translator:
            translator.generate(translator.sample(1))
            if translator.manifest.input is not None:
                spec = translator.manifest.input
                translator.run(np.zeros((spec.height, spec.width, spec.channels), np.uint8))


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


SEEDS = (tiny_engine.members("rgb"), tiny_engine.members("labels"))
