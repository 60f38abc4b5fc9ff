"""Build TensorRT plans from an engine's graphs, with TensorRT 8.6 to 11.

Names that differ between versions are looked up, never assumed. With strong typing (10 and later) each tensor
has the type that the graph gives it. TensorRT 8.6 has no strong typing: there FP16 is allowed, precision
constraints are obeyed, and every layer gets the type that the parser found in the graph.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.reader import EngineFile
from ..errors import BackendError
from ..hardware.tensorrt import error_logger, strongly_typed

Progress = Callable[[str, int, int], None]  # a phase, the steps done, all steps


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What a plan is built for.

    Args:
        batches: Smallest, best and largest batch.
        workspace_mib: Memory that TensorRT may use while it runs a layer; None for no limit.
        version_compatible: The plan also runs on later TensorRT versions with the same major number.
        hardware_compatible: The plan also runs on other GPUs, Ampere or newer; slower.
    """

    batches: tuple[int, int, int] = (1, 1, 4)
    workspace_mib: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False


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
            _type_layers(trt, network)
        network.name = name
        return network

    def build(self, network: Any, *, progress: Progress | None = None) -> bytes:
        """Return the plan of a network.

        Raises:
            BackendError: TensorRT gives up; the message has its reasons.
        """
        config = self.config(network)
        if progress is not None and hasattr(self._trt, "IProgressMonitor"):
            config.progress_monitor = _monitor(self._trt, progress)
        self._logger.errors.clear()
        plan = self._builder.build_serialized_network(network, config)
        if plan is None:
            reasons = "; ".join(self._logger.errors[-3:]) or "no reason given"
            raise BackendError(f"TensorRT cannot build the {network.name}: {reasons}")
        cache = config.get_timing_cache()
        if cache is not None:
            self._cache = bytes(cache.serialize())
        return bytes(plan)

    def config(self, network: Any) -> Any:
        """Return the builder configuration for a network."""
        trt, options = self._trt, self._options
        config = self._builder.create_builder_config()

        # The batches.
        profile = self._builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            profile.set_shape(tensor.name, *((batch, *tuple(tensor.shape)[1:]) for batch in options.batches))
        config.add_optimization_profile(profile)

        # The arithmetic.
        config.clear_flag(trt.BuilderFlag.TF32)  # what is FP32 in the graph needs its precision
        if not strongly_typed(trt):
            config.set_flag(trt.BuilderFlag.FP16)
            config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
            # Without this, which is the default since 10, a plan has one execution context at a time.
            config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)

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
    """Fix every layer to the types that its outputs have in the graph (for 8.6)."""
    floats = (trt.DataType.FLOAT, trt.DataType.HALF)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kinds = [layer.get_output(output).dtype for output in range(layer.num_outputs)]
        if not kinds or any(kind not in floats for kind in kinds):
            continue  # shapes and bytes have no precision to choose
        if layer.type not in (trt.LayerType.CAST, trt.LayerType.CONSTANT):
            layer.precision = kinds[0]
        for output, kind in enumerate(kinds):
            layer.set_output_type(output, kind)


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._steps[phase] = steps
            if parent is None:
                progress(phase, 0, steps)

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

        def step_complete(self, phase: str, step: int) -> bool:
            progress(phase, step + 1, self._steps.get(phase, step + 1))
            return True

    return Monitor()
