"""A stand-in for what runs TensorRT's plans, over the stand-in driver; it computes the tiny engine."""

from __future__ import annotations

import ctypes
import json
import math
import weakref
from typing import Any

import numpy as np

from tests.models import tiny_engine
from tests.models.tiny_engine import OUT_HEIGHT, OUT_WIDTH, D, L
from tests.stand_ins.driver import ILLEGAL_ADDRESS, DriverStub

OUTPUTS = {
    "encoder": ("codes", (L, D)),
    "mapping": ("w", (D,)),
    "generator": ("image", (OUT_HEIGHT, OUT_WIDTH, 3)),
}
ACTIVATIONS = {"encoder": 3000, "mapping": 0, "generator": 5000}  # bytes


LAYERS = [
    {
        "Name": "first",
        "LayerType": "CaskConvolution",
        "Outputs": [{"Name": "a", "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}],
        "TacticName": "sm90_xmma_fprop",
    },
    {
        "Name": "second",
        "LayerType": "Reformat",
        "Outputs": [{"Format/Datatype": "Half"}, {"Format/Datatype": "Row major linear FP32"}],
    },
]


class Inspector:
    """Tells the same of every network, but no formats of a batch that is left open."""

    told = json.dumps({"Layers": LAYERS, "Bindings": []})
    execution_context: Any = None

    def get_engine_information(self, layout: str) -> str:
        assert layout == "json"
        if self.execution_context is None or not self.execution_context.batch:
            return json.dumps(
                {"Layers": [{"Name": "first", "Outputs": [{"Format/Datatype": "N/A due to dynamic shapes"}]}]}
            )
        return self.told


class Runtime:
    """Deserialises the plans of FakeTensorRT."""

    def __init__(self, trt: Any, logger: Any) -> None:
        self.trt, self.logger = trt, logger
        self.engine_host_code_allowed = False
        trt.alive.add(self)
        trt.runtimes = [*trt.runtimes, weakref.ref(self)]

    def deserialize_cuda_engine(self, data: memoryview) -> Engine | None:
        name, profiles = json.loads(bytes(data))
        name = name.partition(".")[0]  # the precision makes no difference here
        if self.trt.refuses == f"deserialize {name}":
            self.logger.log(0, "the plan is of another version")
            return None
        return Engine(self, name, profiles)


class Engine:
    """One network."""

    def __init__(self, runtime: Runtime, name: str, profiles: list[dict[str, list[list[int]]]]) -> None:
        shapes = profiles[0]
        self.runtime, self.trt, self.name, self.shapes, self.contexts = runtime, runtime.trt, name, shapes, 0
        self.profiles, self.num_optimization_profiles = profiles, len(profiles)
        self.tensors = [*shapes, OUTPUTS[name][0]]
        self.num_io_tensors = len(self.tensors)
        self.trt.alive.add(self)
        if self.trt.strong:
            self.device_memory_size_v2 = ACTIVATIONS[name]
            self.create_execution_context = self._with_strategy
        else:
            self.device_memory_size = ACTIVATIONS[name]
            self.create_execution_context_without_device_memory = self._context

    def create_engine_inspector(self) -> Inspector:
        return Inspector()

    def get_tensor_name(self, index: int) -> str:
        return self.tensors[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.shapes else "output"

    def get_tensor_dtype(self, name: str) -> str:
        return self.trt.wrong_type or ("uint8" if name == "image" else "float")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *(self.shapes[name][0][1:] if name in self.shapes else OUTPUTS[self.name][1]))

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.profiles[profile][name]]

    def _with_strategy(self, strategy: str) -> Context | None:
        assert strategy == "user"
        return self._context()

    def _context(self) -> Context | None:
        if self.trt.refuses_once:
            reason, self.trt.refuses_once = self.trt.refuses_once, ""
            self.runtime.logger.log(0, reason)
            return None
        if self.trt.refuses == f"context {self.name}":
            self.runtime.logger.log(0, "out of persistent memory")
            return None
        self.contexts += 1
        return Context(self, profile=0 if self.trt.strong or self.contexts == 1 else -1)


class Context:
    """An execution context, which allocates on its first run."""

    def __init__(self, engine: Engine, profile: int) -> None:
        self.engine, self.trt, self.active_optimization_profile = engine, engine.trt, profile
        self.batch, self.runs, self.addresses = 0, 0, dict[str, int]()
        self.device_memory, self.memory_size = 0, ACTIVATIONS[engine.name]
        self.profiler: Any = None
        self.trt.alive.add(self)
        if self.trt.strong:
            self.set_device_memory = self._set_device_memory

    def _set_device_memory(self, address: int, size: int) -> None:
        self.device_memory, self.memory_size = address, size

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.active_optimization_profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self.active_optimization_profile < 0:
            return False
        smallest, _, largest = self.engine.profiles[self.active_optimization_profile][name]
        self.batch = shape[0]
        fits = smallest[0] <= shape[0] <= largest[0]
        return fits and list(shape[1:]) == smallest[1:] and self.trt.refuses != f"shape {self.engine.name}"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.batch, *(self.trt.wrong_shape or OUTPUTS[self.engine.name][1]))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return self.trt.refuses != f"address {name}"

    def execute_async_v3(self, stream: int) -> bool:
        self.runs += 1
        capturing = self.trt.cuda.capturing(stream)
        moment = "capture" if capturing else "run"
        if self.trt.refuses == f"{moment} {self.engine.name}" or (capturing and self.runs == 1):
            self.engine.runtime.logger.log(0, "no kernel for this GPU")
            return False
        assert self.memory_size >= ACTIVATIONS[self.engine.name]
        addresses, batch = dict(self.addresses), self.batch
        context, cuda = weakref.ref(self), self.trt.cuda

        def compute() -> None:
            alive = context()
            if alive is None or not alive._compute(addresses, batch):
                cuda.fail_with(ILLEGAL_ADDRESS)

        if cuda.launch(stream, compute) != 0:
            return False
        if self.profiler is not None:
            assert not capturing  # a profiler forbids it
            for ms, layer in enumerate(LAYERS, 1):
                self.profiler.report_layer_time(layer["Name"], float(ms))
        return True

    def _compute(self, addresses: dict[str, int], batch: int) -> bool:
        cuda: DriverStub = self.trt.cuda
        arrays = {name: self._array(name, address, batch) for name, address in addresses.items()}
        there = cuda.holds(self.device_memory, self.memory_size)
        if self.trt.faults or not there or any(array is None for array in arrays.values()):
            return False
        self.trt.computed.append((self.engine.name, batch))
        output = arrays.pop(OUTPUTS[self.engine.name][0])
        output[:] = COMPUTE[self.engine.name](*arrays.values())
        return True

    def _array(self, name: str, address: int, batch: int) -> Any:
        inside = name in self.engine.shapes
        shape = (batch, *(self.engine.shapes[name][0][1:] if inside else OUTPUTS[self.engine.name][1]))
        kind = np.uint8 if name == "image" else np.float32
        size = math.prod(shape) * np.dtype(kind).itemsize
        if not self.trt.cuda.holds(address, size):
            return None
        return np.frombuffer((ctypes.c_uint8 * size).from_address(address), kind).reshape(shape)


def _generate(codes: Any, reference: Any, weights: Any) -> Any:
    weights = weights[:, :, None]
    return tiny_engine.generate((1 - weights) * codes + weights * reference)


COMPUTE: dict[str, Any] = {
    "encoder": tiny_engine.encode,
    "mapping": tiny_engine.map_z,
    "generator": _generate,
}
