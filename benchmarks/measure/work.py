"""How much work a graph of an engine is: multiplications, and bytes to read."""

from dataclasses import dataclass
from math import prod

import onnx

from export.inspect.macs import count_macs
from psp_rt import EngineFile


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one run of a graph needs at least."""

    macs: int
    weight_bytes: int  # read once in each run, however large the batch


def graph_work(engine: EngineFile, name: str, *, batch: int) -> Work:
    """Count the work of a graph of an engine."""
    with engine.view(f"{name}.onnx") as data:
        model = onnx.load_model_from_string(bytes(data))
    constants = model.graph.initializer
    sizes = (prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
             for tensor in constants)  # fmt: skip
    return Work(macs=count_macs(model, batch=batch), weight_bytes=sum(sizes))
