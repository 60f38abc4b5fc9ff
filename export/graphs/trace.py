"""Trace a module to ONNX, with its weights in a separate file.

``encoder.onnx`` holds the graph and small constants. Larger ones are in ``encoder.weights`` as ONNX
external data, 64-byte aligned, so that a runtime can map them from the disk without a copy. The opset
is 17, the latest that TensorRT 8.6 reads.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

OPSET = 17
ALIGNMENT = 64
INLINE_BYTES = 1024  # constants up to this size stay in the graph

Storage = Literal["fp32", "fp16"]


def trace(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    output: str,
    folder: Path,
    name: str,
    *,
    storage: Storage = "fp32",
) -> list[Path]:
    """Write NAME.onnx and NAME.weights into a folder and return their paths.

    The first axis of every input and of the output is dynamic.

    Args:
        inputs: Example tensors under their ONNX names.
        storage: ``fp16`` stores weights as FP16 and casts them back in the graph; runtimes fold the
            casts when they load the graph.
    """
    path = folder / f"{name}.onnx"
    _torch_export(module, inputs, output, path)
    graph = onnx.load(path)
    weights = folder / f"{name}.weights"
    with weights.open("wb") as file:
        move_weights_out(graph, file, weights.name, storage=storage)
    del graph.graph.value_info[:]  # shapes of the example; inference finds the true ones again
    path.write_bytes(graph.SerializeToString())
    onnx.checker.check_model(path)
    if weights.stat().st_size:
        return [path, weights]
    weights.unlink()
    return [path]


def _torch_export(module: nn.Module, inputs: Mapping[str, Tensor], output: str, path: Path) -> None:
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
            do_constant_folding=True,
        )


def move_weights_out(
    graph: onnx.ModelProto, file: io.BufferedIOBase, location: str, *, storage: Storage
) -> None:
    """Move the large constants of a graph into an open file and refer to them there."""
    casts = []
    for initializer in graph.graph.initializer:
        values = numpy_helper.to_array(initializer)
        if values.nbytes <= INLINE_BYTES:
            continue
        if storage == "fp16" and values.dtype == np.float32:
            stored_name = initializer.name + "_fp16"
            casts.append(helper.make_node("Cast", [stored_name], [initializer.name], to=TensorProto.FLOAT))
            values = values.astype(np.float16)
            initializer.name = stored_name
            initializer.data_type = TensorProto.FLOAT16
        file.write(b"\0" * (-file.tell() % ALIGNMENT))
        _point_to(initializer, location, file.tell(), values.nbytes)
        file.write(values.tobytes())
    nodes = [*casts, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)


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
