"""Trace a module to ONNX, with its weights in a separate file.

``encoder.onnx`` holds the graph and small constants. Larger ones are in ``encoder.weights`` as ONNX
external data, 64-byte aligned, so that a runtime can map them from the disk without a copy. The opset
is 17, the latest that TensorRT 8.6 reads.

Another form of the same network (`export.graphs.gpu`) refers to the same weights file. Where it joins several
tensors into one, these lie side by side in the file, and it refers to all of them at once.
"""

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

OPSET = 17
ALIGNMENT = 64
INLINE_BYTES = 1024  # constants up to this size stay in the graph
MAX_FOLDED = 64  # numbers
FP16_END = "_fp16"  # of the names of weights that are stored as FP16

Storage = Literal["fp32", "fp16"]


def trace(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    output: str,
    folder: Path,
    name: str,
    *,
    storage: Storage = "fp32",
    joined: Iterable[Sequence[str]] = (),
) -> list[Path]:
    """Write NAME.onnx and NAME.weights into a folder and return their paths.

    The first axis of every input and of the output is dynamic.

    Args:
        inputs: Example tensors under their ONNX names.
        storage: ``fp16`` stores weights as FP16 and casts them back in the graph; runtimes fold the
            casts when they load the graph.
        joined: Names of weights that are to lie side by side, so that `trace_again` can join them.
    """
    path = folder / f"{name}.onnx"
    _torch_export(module, inputs, output, path)
    graph = onnx.load(path)
    weights = folder / f"{name}.weights"
    with weights.open("wb") as file:
        move_weights_out(graph, file, weights.name, storage=storage, joined=joined)
    del graph.graph.value_info[:]  # shapes of the example; inference finds the true ones again
    path.write_bytes(graph.SerializeToString())
    onnx.checker.check_model(path)
    if weights.stat().st_size:
        return [path, weights]
    weights.unlink()
    return [path]


def trace_again(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    output: str,
    path: Path,
    *,
    name: str,
    joined: Mapping[str, Sequence[str]],
) -> Path:
    """Write another form of a network that `trace` has written, on the same weights; return its path.

    Args:
        module: Its tensors have the names that they have in the other form.
        inputs: Example tensors under their ONNX names.
        output: The output's name.
        path: NAME.onnx, the other form.
        name: Of the new graph.
        joined: For tensors of the module, the weights of the other form that they consist of.
    """
    target = path.with_name(f"{name}.onnx")
    _torch_export(module, inputs, output, target, fold=False)  # folding would store joined weights again
    graph, weights = onnx.load(target), path.with_suffix(".weights")
    other = onnx.load(path, load_external_data=False)
    stored = _stored(other)
    casts = []
    for initializer in graph.graph.initializer:
        parts = [stored.get(part) for part in joined.get(initializer.name, (initializer.name,))]
        place = _one_place(parts, count=prod(initializer.dims))
        if place is None:
            continue
        if place.data_type != initializer.data_type:
            casts.append(_cast_from_fp16(initializer))
        _point_to(initializer, weights.name, place.offset, place.length)
    with weights.open("ab") as file:  # what only this form has: biases in another arrangement
        move_weights_out(graph, file, weights.name, storage="fp32")
    _put_first(graph.graph, casts)
    graph.graph.output[0].CopyFrom(other.graph.output[0])  # with the same open and known sizes
    _share_constants(graph.graph)
    _fold_small(graph.graph)
    del graph.graph.value_info[:]
    target.write_bytes(graph.SerializeToString())
    onnx.checker.check_model(target)
    return target


def _torch_export(
    module: nn.Module, inputs: Mapping[str, Tensor], output: str, path: Path, *, fold: bool = True
) -> None:
    with torch.no_grad(), warnings.catch_warnings():
        # Only the tracing exporter keeps to opset 17; the newer one silently writes 18.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)  # about shapes that are fixed on purpose
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes={key: {0: "N"} for key in [*inputs, output]},
            do_constant_folding=fold,
        )


def move_weights_out(
    graph: onnx.ModelProto,
    file: io.BufferedIOBase,
    location: str,
    *,
    storage: Storage,
    joined: Iterable[Sequence[str]] = (),
) -> None:
    """Move the large constants of a graph into an open file and refer to them there."""
    casts = []
    first = {name: at for at, name in enumerate(name for names in joined for name in names)}
    initializers = sorted(graph.graph.initializer, key=lambda tensor: first.get(tensor.name, len(first)))
    for initializer in initializers:
        if initializer.data_location == TensorProto.EXTERNAL:
            continue  # it is there already
        values = numpy_helper.to_array(initializer)
        if values.nbytes <= INLINE_BYTES:
            continue
        if storage == "fp16" and values.dtype == np.float32:
            casts.append(_cast_from_fp16(initializer))
            values = values.astype(np.float16)
        file.write(b"\0" * (-file.tell() % ALIGNMENT))
        _point_to(initializer, location, file.tell(), values.nbytes)
        file.write(values.tobytes())
    _put_first(graph.graph, casts)


def _cast_from_fp16(initializer: TensorProto) -> onnx.NodeProto:
    """Make a tensor FP16, under another name, and return the cast that gives what it was."""
    name = initializer.name
    initializer.name, initializer.data_type = f"{name}{FP16_END}", TensorProto.FLOAT16
    return helper.make_node("Cast", [initializer.name], [name], to=TensorProto.FLOAT)


def _put_first(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a tensor lies in a weights file."""

    offset: int
    length: int
    data_type: int


def _stored(graph: onnx.ModelProto) -> dict[str, _Place]:
    """Return where the tensors of a graph lie, under the names that they have in FP32."""
    found = {}
    for tensor in graph.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            half = tensor.data_type == TensorProto.FLOAT16
            found[tensor.name.removesuffix(FP16_END) if half else tensor.name] = _Place(
                offset=int(entries["offset"]), length=int(entries["length"]), data_type=tensor.data_type
            )
    return found


def _one_place(parts: Sequence[_Place | None], *, count: int) -> _Place | None:
    """Return the place of tensors that lie side by side; None if they do not, or have another size."""
    places = [place for place in parts if place is not None]
    if len(places) < len(parts):
        return None
    first, length = places[0], sum(place.length for place in places)
    side_by_side = all(
        after.offset == before.offset + before.length and after.data_type == before.data_type
        for before, after in pairwise(places)
    )
    itemsize = 2 if first.data_type == TensorProto.FLOAT16 else 4
    if not side_by_side or length != count * itemsize:
        return None
    return _Place(offset=first.offset, length=length, data_type=first.data_type)


def _share_constants(graph: onnx.GraphProto) -> None:
    """Make initializers of Constant nodes, equal ones only once: a reader limits the number of nodes."""
    names: dict[bytes, str] = {}
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.node:
        if node.op_type != "Constant":
            kept.append(node)
            continue
        tensor = node.attribute[0].t
        tensor.ClearField("name")
        content = tensor.SerializeToString()
        if content not in names:
            names[content] = tensor.name = node.output[0]
            graph.initializer.append(tensor)
        renamed[node.output[0]] = names[content]
    for node in kept:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
    del graph.node[:]
    graph.node.extend(kept)


def _fold_small(graph: onnx.GraphProto) -> None:
    """Replace what computes small constants, such as the pads of a padding, by its result."""
    kinds = (TensorProto.INT64, TensorProto.BOOL, TensorProto.DOUBLE)
    constants = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_type in kinds and prod(tensor.dims) <= MAX_FOLDED
    }
    kept, folded = [], []
    for node in graph.node:
        if node.input and all(name in constants for name in node.input):
            (value,) = ReferenceEvaluator(node).run(None, {name: constants[name] for name in node.input})
            constants[node.output[0]] = np.asarray(value)
            folded.append(numpy_helper.from_array(np.asarray(value), node.output[0]))
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    needed = {name for node in kept for name in node.input}
    initializers = [tensor for tensor in (*graph.initializer, *folded) if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(initializers)


def _point_to(initializer: TensorProto, location: str, offset: int, length: int) -> None:
    for field in ("raw_data", "float_data", "int32_data", "int64_data"):
        initializer.ClearField(field)
    initializer.data_location = TensorProto.EXTERNAL
    del initializer.external_data[:]
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        initializer.external_data.add(key=key, value=value)


def round_to_fp16(modules: Sequence[nn.Module]) -> None:
    """Round in place what `trace` stores as FP16, so that PyTorch computes with the values in the file."""
    for module in modules:
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.dtype == torch.float32 and tensor.numel() * 4 > INLINE_BYTES:
                tensor.data.copy_(tensor.data.half().float())
