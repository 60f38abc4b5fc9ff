"""A stand-in for TensorRT's Python package, of a version to choose, that records what it is told."""

from __future__ import annotations

import json
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.stand_ins.driver import DriverStub
from tests.stand_ins.tensorrt_runtime import Runtime


class ILogger:
    Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)


class IProgressMonitor:
    pass


class IProfiler:
    pass


class Layer:
    """A layer, whose floating-point outputs count as float until it is told otherwise, as in TensorRT 8.6."""

    def __init__(self, kind: str, inputs: list[str], output: str, dtype: str = "float", **own: Any) -> None:
        self.type, self.inputs, self.output, self.dtype = kind, inputs, output, dtype
        self.num_inputs, self.num_outputs = len(inputs), 1
        self.precision: str | None = None
        self.output_types: dict[int, str] = {}
        self.__dict__.update(own)

    def get_input(self, index: int) -> Any:
        return SimpleNamespace(name=self.inputs[index])

    def get_output(self, index: int) -> Any:
        return SimpleNamespace(name=self.output, dtype=self.dtype)

    def set_output_type(self, index: int, kind: str) -> None:
        self.output_types[index] = kind


class Network:
    def __init__(self, flags: int) -> None:
        self.flags, self.name, self.inputs = flags, "", []
        self.layers = [
            Layer("cast", ["image"], "pixels", to_type="float"),
            Layer("constant", [], "weights", weights=np.zeros(1, np.float16)),
            Layer("cast", ["pixels"], "halves", to_type="half"),
            Layer("shape", ["halves"], "sizes", "int64"),
            Layer("convolution", ["halves", "weights"], "map"),
            Layer("cast", ["map"], "again", to_type="float"),
            Layer("elementwise", ["again", "pixels"], "sum"),
        ]

    num_layers = property(lambda self: len(self.layers))
    num_inputs = property(lambda self: len(self.inputs))

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]

    def get_input(self, index: int) -> Any:
        return self.inputs[index]


class FakeTensorRT:
    """What psp_rt uses of TensorRT; ``networks`` and ``configs`` hold what it was told."""

    ILogger, IProgressMonitor, IProfiler = ILogger, IProgressMonitor, IProfiler
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    LayerInformationFormat = SimpleNamespace(JSON="json")
    DataType = SimpleNamespace(FLOAT="float", HALF="half", UINT8="uint8")
    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    LayerType = SimpleNamespace(CAST="cast", CONSTANT="constant")
    ICastLayer = IConstantLayer = Layer
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    HardwareCompatibilityLevel = SimpleNamespace(AMPERE_PLUS="ampere+")

    def __init__(
        self, version: str = "10.13.3.9", *, fails: str = "", cuda: DriverStub | None = None
    ) -> None:
        self.__name__, self.__version__, self._fails = "tensorrt", version, fails
        strong = {"STRONGLY_TYPED": 1} if not version.startswith("8.") else {}
        self.NetworkDefinitionCreationFlag = SimpleNamespace(EXPLICIT_BATCH=0, **strong)
        names = ("TF32", "VERSION_COMPATIBLE") + (() if strong else ("FP16", "OBEY_PRECISION_CONSTRAINTS"))
        self.BuilderFlag = SimpleNamespace(**{name: name for name in names})
        self.strong = bool(strong)
        if strong:
            self.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
        else:
            self.PreviewFeature = SimpleNamespace(PROFILE_SHARING_0806="profile sharing")
            self.TacticSource = SimpleNamespace(EDGE_MASK_CONVOLUTIONS=3, JIT_CONVOLUTIONS=4)
        self.cuda = cuda
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()  # engines, contexts and runtimes
        self.runtimes: list[Any] = []
        self.computed: list[tuple[str, int]] = []  # networks, and their batches
        self.refuses, self.faults, self.wrong_type, self.wrong_shape = "", False, "", ()
        self.refuses_once = ""  # an execution context, for this reason
        self.networks: list[Network] = []
        self.configs: list[Any] = []
        self.parsed: list[tuple[bytes, str]] = []

    def Builder(self, logger: Any) -> Any:
        def create_network(flags: int) -> Network:
            self.networks.append(Network(flags))
            return self.networks[-1]

        def build(network: Network, config: Any) -> bytes | None:
            config.progress_monitor and config.progress_monitor.phase_start("Building", None, 2)
            if self._fails == network.name:
                logger.log(ILogger.Severity.ERROR, "no tactic was found")
                return None
            return json.dumps([network.name, [profile.shapes for profile in config.profiles]]).encode()

        return SimpleNamespace(
            create_network=create_network,
            create_optimization_profile=Profile,
            create_builder_config=self._config,
            build_serialized_network=build,
        )

    def OnnxParser(self, network: Network, logger: Any) -> Any:
        def parse(model: bytes, path: str) -> bool:
            import onnx

            self.parsed.append((model, path))
            for value in onnx.load_model_from_string(model).graph.input:
                rest = [size.dim_value for size in value.type.tensor_type.shape.dim][1:]
                kind = "uint8" if value.name == "image" else "float"
                network.inputs.append(SimpleNamespace(name=value.name, shape=(-1, *rest), dtype=kind))
            return True

        return SimpleNamespace(parse=parse, num_errors=0)

    def Runtime(self, logger: Any) -> Runtime | None:
        return None if self.refuses == "runtime" else Runtime(self, logger)

    def _config(self) -> Config:
        self.configs.append(Config())
        return self.configs[-1]


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.shapes[name] = list(shapes)


class Config:
    def __init__(self) -> None:
        self.flags, self.limits, self.cache = {"TF32"}, {}, b""
        self.progress_monitor: Any = None
        self.profiles: list[Profile] = []
        self.tactic_sources = 0
        self.profiling_verbosity = ""

    def add_optimization_profile(self, profile: Profile) -> None:
        self.profiles.append(profile)

    def set_tactic_sources(self, sources: int) -> None:
        self.tactic_sources = sources

    def set_flag(self, flag: str) -> None:
        self.flags.add(flag)

    def set_preview_feature(self, feature: str, enabled: bool) -> None:
        self.flags |= {feature} if enabled else set()

    def clear_flag(self, flag: str) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.limits[pool] = size

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def set_timing_cache(self, cache: bytes, *, ignore_mismatch: bool) -> None:
        self.cache = cache

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self.cache + b"+")
