"""Which weight is each constant of a graph? Found by tracing the same network again with drawn weights.

Both graphs then have the same nodes in the same order, and a drawn constant is known by its numbers, even
where the exporter renamed, transposed or scaled it.
"""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from export.graphs import trace as onnx_files
from psp_rt import EngineFile
from trainer.networks.layers import EqualLinear

Constant = NDArray[Any]


class OtherOperators(ValueError):
    """A graph has other operators than the network that it was compared with."""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The operators of a graph in their order, and the constants that they read."""

    operators: list[str]
    inputs: list[
        tuple[str, Constant] | None
    ]  # of all operators; the name and value of those that are constant
    strides: dict[str, tuple[int, ...]]  # of each convolution, by the name of its weight

    @property
    def constants(self) -> dict[str, Constant]:
        """Return the constants by their names; of those with the same numbers a file may keep but one."""
        return dict(entry for entry in self.inputs if entry is not None)


def read(engine: EngineFile, name: str) -> Graph:
    """Return a graph of an engine file."""
    weights = f"{name}.weights"
    data = engine.view(weights) if weights in engine.names else memoryview(b"")
    return _parse(onnx.ModelProto.FromString(bytes(engine.view(f"{name}.onnx"))), data)


def draw(module: nn.Module) -> None:
    """Replace every weight and constant of a network by numbers that no other one has."""
    numbers = torch.Generator().manual_seed(0)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(0.1 + torch.rand(tensor.shape, generator=numbers))


def tensors(module: nn.Module, inputs: Mapping[str, Tensor], output: str, found: Graph) -> dict[str, Tensor]:
    """Return the state of a network whose trace a graph is.

    Args:
        module: Of the graph's sizes; its weights were drawn.
        inputs: Examples, as the exporter takes them.

    Raises:
        OtherOperators: The graph is another network's.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, *beside = onnx_files.trace(module, inputs, output, Path(folder), "drawn")
        data = memoryview(beside[0].read_bytes() if beside else b"")
        drawn = _parse(onnx.load(path, load_external_data=False), data)
    if drawn.operators != found.operators:
        raise OtherOperators("its operators are others")
    known = {value.tobytes(): (name, factor, value.shape) for name, factor, value in _as_traced(module)}
    result: dict[str, Tensor] = {}
    for ours, theirs in zip(drawn.inputs, found.inputs, strict=True):
        if ours is None or theirs is None:
            continue
        for form in (np.asarray, np.transpose):
            name, factor, shape = known.get(form(ours[1]).tobytes(), ("", 1.0, ()))
            if name:
                stored = np.array(form(theirs[1]), dtype=np.float32, order="C")
                result[name] = torch.from_numpy(stored.reshape(shape)) / factor
                break
    return result


def _as_traced(module: nn.Module) -> Iterator[tuple[str, float, Constant]]:
    """Yield the tensors of a network as its trace has them: name, run-time factor, value."""
    factors: dict[str, float] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, EqualLinear):
            factors |= {f"{name}.weight": layer.scale, f"{name}.bias": layer.lr_mul}
    for name, tensor in module.state_dict().items():
        factor = factors.get(name, 1.0)
        yield name, factor, (tensor * factor).numpy()


def _parse(model: onnx.ModelProto, weights: memoryview) -> Graph:
    values = {tensor.name: _value(tensor, weights) for tensor in model.graph.initializer}
    operators: list[str] = []
    inputs: list[tuple[str, Constant] | None] = []
    strides = {}
    for node in model.graph.node:
        # A weight may be stored as FP16, and of several with the same numbers the exporter keeps one.
        if node.op_type in ("Cast", "Identity") and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]].astype(np.float32)
            continue
        operators.append(node.op_type)
        inputs += [(name, values[name]) if name in values else None for name in node.input]
        if node.op_type == "Conv":
            stride = next((item.ints for item in node.attribute if item.name == "strides"), (1, 1))
            strides[node.input[1]] = tuple(stride)
    return Graph(operators=operators, inputs=inputs, strides=strides)


def _value(tensor: onnx.TensorProto, weights: memoryview) -> Constant:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    place = {entry.key: entry.value for entry in tensor.external_data}
    start = int(place["offset"])
    data = bytes(weights[start : start + int(place["length"])])
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.frombuffer(data, kind).reshape(tuple(tensor.dims))
