"""Build TensorRT plans from an engine's graphs, with TensorRT 8.6 to 11.

Names that differ between versions are looked up, never assumed. With strong typing (10 and later) each tensor
has the type that the graph gives it. TensorRT 8.6 has no strong typing: there FP16 is allowed, precision
constraints are obeyed, and every layer gets the type that follows from the graph.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.reader import EngineFile
from ..errors import BackendError
from ..hardware.tensorrt import error_logger, strongly_typed

FP16_END = ".fp16"  # of the names of graphs
LEAST_HALF = 0.5  # of the convolutions of an FP16 graph; those that stay in FP32 for their range are few

Progress = Callable[[str, int, int], None]  # a phase, the steps done, all steps


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What a plan is built for.

    Args:
        batches: Smallest, best and largest batch. A batch of 1, if it is among them, has a profile of its
            own, in which all sizes are known: TensorRT then fuses more.
        workspace_mib: Memory that TensorRT may use while it runs a layer; None for no limit.
        version_compatible: The plan also runs on later TensorRT versions with the same major number.
        hardware_compatible: The plan also runs on other GPUs, Ampere or newer; slower.
    """

    batches: tuple[int, int, int] = (1, 4, 4)
    workspace_mib: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False

    @property
    def profiles(self) -> tuple[tuple[int, int, int], ...]:
        """Return the smallest, best and largest batch of each profile."""
        smallest, best, largest = self.batches
        if smallest > 1 or largest == 1:
            return (self.batches,)
        return (1, 1, 1), (2, max(best, 2), largest)


class PlanBuilder:
    """Builds the plans of one engine, one graph after the other, with one timing cache."""

    def __init__(
        self,
        trt: Any,
        options: BuildOptions,
        *,
        timing_cache: bytes = b"",
        listen: Callable[[str], None] | None = None,
    ) -> None:
        """Create a builder.

        Args:
            trt: The library.
            options: For all plans.
            timing_cache: Of an earlier build.
            listen: Called with each of TensorRT's messages, also the verbose ones.
        """
        self._trt, self._options, self._cache = trt, options, timing_cache
        self._logger = error_logger(trt, listen=listen)
        try:
            self._builder = trt.Builder(self._logger)
        except TypeError as error:  # pybind raises TypeError when TensorRT returns a null builder
            reasons = "; ".join(self._logger.errors) or str(error)
            raise BackendError(
                f"TensorRT cannot create a builder here: {reasons}; see psp-rt doctor"
            ) from error

    @property
    def timing_cache(self) -> bytes:
        """Return the measured speed of kernels, for the next build; empty if there is no cache."""
        return self._cache

    def parse(self, engine: EngineFile, name: str) -> Any:
        """Return the network of NAME.onnx, with its weights read from the engine file.

        Raises:
            BackendError: TensorRT cannot read the graph.
            FormatError: The graph is not safe to load.
        """
        trt = self._trt
        flags = trt.NetworkDefinitionCreationFlag
        wanted = [getattr(flags, flag, None) for flag in ("STRONGLY_TYPED", "EXPLICIT_BATCH")]
        network = self._builder.create_network(sum(1 << int(flag) for flag in wanted if flag is not None))
        parser = trt.OnnxParser(network, self._logger)
        folder = Path(
            os.path.realpath(engine.path)
        ).parent  # the weights are found in the folder of this path
        if not parser.parse(engine.graph(name), str(folder / f"{name}.onnx")):
            reasons = [str(parser.get_error(index)) for index in range(parser.num_errors)]
            raise BackendError(f"TensorRT cannot read {name}.onnx: {'; '.join(reasons) or 'no reason given'}")
        if not strongly_typed(trt):
            if name.endswith(FP16_END) and engine.manifest.weights != "fp16":
                # It would take a cast weight for a computed one.
                raise BackendError(
                    f"TensorRT {trt.__version__} builds {name}.onnx only from weights that are stored as "
                    "FP16; export again with --weights fp16, or use TensorRT 10 or later"
                )
            _type_layers(trt, network)
        network.name = name
        return network

    def build(self, network: Any, *, progress: Progress | None = None) -> bytes:
        """Return the plan of a network.

        Raises:
            BackendError: TensorRT gives up; the message has its reasons.
        """
        config = self.config(network)
        failures: list[BaseException] = []
        if progress is not None and hasattr(self._trt, "IProgressMonitor"):
            config.progress_monitor = _monitor(self._trt, progress, failures)
        self._logger.errors.clear()
        plan = self._builder.build_serialized_network(network, config)
        if failures:
            raise failures[0]
        if plan is None:
            reasons = "; ".join(self._logger.errors[-3:]) or "no reason given"
            raise BackendError(f"TensorRT cannot build the {network.name}: {reasons}")
        cache = config.get_timing_cache()
        if cache is not None:
            self._cache = bytes(cache.serialize())
        if network.name.endswith(FP16_END) and not strongly_typed(self._trt):
            self._check_types(bytes(plan), network)
        return bytes(plan)

    def _check_types(self, plan: bytes, network: Any) -> None:
        """Refuse a plan of an FP16 graph whose convolutions are not FP16 (for 8.6).

        Raises:
            BackendError: They are not.
        """
        trt = self._trt
        engine = trt.Runtime(self._logger).deserialize_cuda_engine(plan)
        context = engine.create_execution_context_without_device_memory()
        for index in range(network.num_inputs):  # with open sizes the inspector tells no types
            tensor = network.get_input(index)
            context.set_input_shape(tensor.name, (self._options.batches[0], *tuple(tensor.shape)[1:]))
        inspector = engine.create_engine_inspector()
        inspector.execution_context = context
        share = half_share(json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON)))
        if share < LEAST_HALF:
            raise BackendError(
                f"TensorRT {trt.__version__} built the {network.name} with only {share:.0%} of its "
                "convolutions in FP16; use TensorRT 10 or later, or export with --precision fp32"
            )

    def config(self, network: Any) -> Any:
        """Return the builder configuration for a network."""
        trt, options = self._trt, self._options
        config = self._builder.create_builder_config()

        # The batches.
        for batches in options.profiles:
            profile = self._builder.create_optimization_profile()
            for index in range(network.num_inputs):
                tensor = network.get_input(index)
                profile.set_shape(tensor.name, *((batch, *tuple(tensor.shape)[1:]) for batch in batches))
            config.add_optimization_profile(profile)

        # The arithmetic.
        config.clear_flag(trt.BuilderFlag.TF32)  # what is FP32 in the graph needs its precision
        if not strongly_typed(trt):
            config.set_flag(trt.BuilderFlag.FP16)
            config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
            # Without this, which is the default since 10, a plan has one execution context at a time.
            config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
            # cuDNN and cuBLAS, which 8.6 otherwise loads, may not be installed.
            sources = (trt.TacticSource.EDGE_MASK_CONVOLUTIONS, trt.TacticSource.JIT_CONVOLUTIONS)
            config.set_tactic_sources(sum(1 << int(source) for source in sources))

        # Where it may run, and what it may use.
        if options.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that inspectors can show precisions
        cache = config.create_timing_cache(self._cache)
        if cache is not None:
            config.set_timing_cache(cache, ignore_mismatch=False)
        return config


def _type_layers(trt: Any, network: Any) -> None:
    """Fix every layer to the types that the graph gives it (for 8.6).

    TensorRT 8.6 infers no types: until it has built, every output of a layer counts as FLOAT. So the types
    are followed here from the inputs, through casts and constants.
    """
    floats = (trt.DataType.FLOAT, trt.DataType.HALF)
    known = {tensor.name: tensor.dtype for tensor in map(network.get_input, range(network.num_inputs))}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        outputs = [layer.get_output(output) for output in range(layer.num_outputs)]
        if not outputs or any(tensor.dtype not in floats for tensor in outputs):
            continue  # shapes and bytes have no precision to choose
        kind = _layer_type(trt, layer, known)
        if layer.type not in (trt.LayerType.CAST, trt.LayerType.CONSTANT):
            layer.precision = kind
        for output, tensor in enumerate(outputs):
            layer.set_output_type(output, kind)
            known[tensor.name] = kind


def _layer_type(trt: Any, layer: Any, known: dict[str, Any]) -> Any:
    """Return the type of a layer's floating-point outputs: that of its first floating-point input."""
    if layer.type == trt.LayerType.CAST:
        layer.__class__ = trt.ICastLayer  # the binding returns every layer as its base class
        return layer.to_type
    if layer.type == trt.LayerType.CONSTANT:
        layer.__class__ = trt.IConstantLayer
        stored = layer.weights.dtype  # of NumPy or of TensorRT
        return trt.DataType.HALF if stored in (np.float16, trt.DataType.HALF) else trt.DataType.FLOAT
    inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
    kinds = [known.get(tensor.name) for tensor in inputs if tensor is not None]
    floats = (trt.DataType.FLOAT, trt.DataType.HALF)
    return next((kind for kind in kinds if kind in floats), layer.get_output(0).dtype)


def half_share(described: Any) -> float:
    """Return the share of a plan's convolutions whose results are FP16; 1 if it has none.

    Args:
        described: What TensorRT's inspector tells, read from JSON. TensorRT 11 names the type "Datatype",
            older ones "Format/Datatype".
    """
    found = []
    for layer in described["Layers"]:
        if "conv" in layer.get("LayerType", "").lower():
            output = layer["Outputs"][0]
            kind = output.get("Format/Datatype") or output.get("Datatype", "")
            found.append("FP16" in kind or "Half" in kind)
    return sum(found) / len(found) if found else 1.0


def _monitor(trt: Any, progress: Progress, failures: list[BaseException]) -> Any:
    """Return a monitor that calls ``progress``, and keeps its exception and ends the build if it raises one.

    TensorRT prints exceptions of its callbacks, Ctrl-C among them, and goes on.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._steps[phase] = steps
            if parent is None:
                self._tell(phase, 0, steps)

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

        def step_complete(self, phase: str, step: int) -> bool:
            return self._tell(phase, step + 1, self._steps.get(phase, step + 1))

        def _tell(self, phase: str, done: int, whole: int) -> bool:
            if not failures:
                try:
                    progress(phase, done, whole)
                except BaseException as error:
                    failures.append(error)
            return not failures

    return Monitor()
