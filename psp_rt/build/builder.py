"""Build TensorRT plans from an engine's graphs, with TensorRT 8.6 to 11 or TensorRT for RTX.

Names that differ between versions are looked up, never assumed. With strong typing (10 and later) each
tensor has the type that the graph gives it. TensorRT 8.6 knows no strong typing: there FP16 is allowed,
constraints are obeyed, and every layer gets the type that the parser found in the graph.

Written against the Python interfaces of TensorRT 10.13 and TensorRT for RTX 1.7. Only the latter, which
needs no GPU to build, has run; see tests/test_tensorrt_rtx.py.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.graph import WeightsPointer
from ..engine.reader import EngineFile
from ..errors import BackendError

INSTALL_TENSORRT = "pip install 'psp_rt[tensorrt]'"
INSTALL_RTX = "pip install tensorrt-rtx"
Progress = Callable[[str, int, int], None]  # a phase, the steps done, all steps


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What a plan is built for.

    Args:
        batches: Smallest, best and largest batch.
        workspace_mib: Memory that TensorRT may use while it runs a layer; None for all there is.
        version_compatible: Also for later TensorRT versions of the same major number.
        hardware_compatible: Also for GPUs other than this one, Ampere or newer; slower.
        compute_capabilities: For TensorRT for RTX alone: "8.9" and the like; empty for this machine's.
    """

    batches: tuple[int, int, int] = (1, 1, 4)
    workspace_mib: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    compute_capabilities: tuple[str, ...] = ()


def load_library(*, rtx: bool) -> Any:
    """Import TensorRT, or TensorRT for RTX.

    Raises:
        BackendError: It is not installed, or cannot be loaded.
    """
    names = ("tensorrt_rtx", "tensorrt_rtx_bindings") if rtx else ("tensorrt",)
    problems = []
    for name in names:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:  # the last two: libraries that it cannot find
            problems.append(str(error))
    what, command = ("TensorRT for RTX", INSTALL_RTX) if rtx else ("TensorRT", INSTALL_TENSORRT)
    raise BackendError(f"{what} cannot be loaded ({problems[0]}); install it with: {command}")


class PlanBuilder:
    """Builds the plans of one engine, one graph after the other, with one cache of timings."""

    def __init__(self, trt: Any, options: BuildOptions, *, timing_cache: bytes = b"") -> None:
        self._trt = trt
        self._options = options
        self._cache = timing_cache
        self._times = "rtx" not in trt.__name__  # TensorRT for RTX times nothing while it builds
        self._logger = error_logger(trt)
        try:
            self._builder = trt.Builder(self._logger)
        except TypeError as error:  # pybind's word for a builder that TensorRT did not make
            reasons = "; ".join(self._logger.errors) or str(error)
            raise BackendError(f"TensorRT makes no builder here: {reasons}; see psp-rt doctor") from error

    @property
    def timing_cache(self) -> bytes:
        """Return what is known of the speed of kernels, for the next build; empty where there is no cache."""
        return self._cache

    def parse(self, engine: EngineFile, name: str) -> Any:
        """Return the network of NAME.onnx, its weights read from the engine file itself.

        Raises:
            BackendError: TensorRT cannot read the graph.
        """
        trt = self._trt
        network = self._builder.create_network(_network_flags(trt))
        parser = trt.OnnxParser(network, self._logger)
        real = Path(os.path.realpath(engine.path))
        weights = f"{name.removesuffix('.fp16')}.weights"
        pointer = WeightsPointer(
            f"{engine.path}: {name}.onnx",
            file_name=real.name,
            weights_name=weights,
            weights=engine.span(weights) if weights in engine.names else None,
        )
        with engine.view(f"{name}.onnx") as graph:
            model = pointer.rewrite(graph)
        if not parser.parse(model, str(real.parent / f"{name}.onnx")):
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
        config = self._config(network, progress)
        self._logger.errors.clear()
        plan = self._builder.build_serialized_network(network, config)
        if plan is None:
            reasons = "; ".join(self._logger.errors[-3:]) or "no reason given"
            raise BackendError(f"TensorRT cannot build the {network.name}: {reasons}")
        cache = config.get_timing_cache() if self._times else None
        if cache is not None:
            self._cache = bytes(cache.serialize())
        return bytes(plan)

    def _config(self, network: Any, progress: Progress | None) -> Any:
        trt, options = self._trt, self._options
        config = self._builder.create_builder_config()
        config.add_optimization_profile(_profile(self._builder, network, options.batches))
        if options.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
        config.clear_flag(trt.BuilderFlag.TF32)  # what stays FP32 stays so for its precision
        if not strongly_typed(trt):
            config.set_flag(trt.BuilderFlag.FP16)
            config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
            # Without this, which is the default since 10, a plan has one execution context at a time.
            config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        _set_compute_capabilities(trt, config, options.compute_capabilities)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or no inspector can tell precisions
        if self._times:
            cache = config.create_timing_cache(self._cache)
            if cache is not None:
                config.set_timing_cache(cache, ignore_mismatch=False)
        if progress is not None and hasattr(trt, "IProgressMonitor"):
            config.progress_monitor = _monitor(trt, progress)
        return config


def strongly_typed(trt: Any) -> bool:
    """Say whether this version takes the types of tensors from the graph."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def _network_flags(trt: Any) -> int:
    flags = trt.NetworkDefinitionCreationFlag
    wanted = [getattr(flags, name, None) for name in ("STRONGLY_TYPED", "EXPLICIT_BATCH")]
    return sum(1 << int(flag) for flag in wanted if flag is not None)


def _type_layers(trt: Any, network: Any) -> None:
    """Hold every layer to the type that its outputs have in the graph (for 8.6)."""
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


def _profile(builder: Any, network: Any, batches: Sequence[int]) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        rest = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, *((batch, *rest) for batch in batches))
    return profile


def check_compute_capabilities(trt: Any, wanted: Sequence[str]) -> None:
    """Refuse what the library builds not for, before it has worked for minutes.

    Raises:
        BackendError: It is not TensorRT for RTX; a capability is unknown to it, or named twice.
    """
    if not wanted:
        return
    known = getattr(trt, "ComputeCapability", None)
    if known is None:
        raise BackendError("only TensorRT for RTX builds for other GPUs than this one; add --rtx")
    names = {f"{key[2:-1]}.{key[-1]}" for key in known.__members__ if re.fullmatch(r"SM\d{2,}", key)}
    for version in wanted:
        if version not in names:
            listed = ", ".join(sorted(names, key=float))
            raise BackendError(f"TensorRT for RTX builds for compute capability {listed}; got {version!r}")
    if len(set(wanted)) < len(wanted):
        raise BackendError(f"a compute capability is named twice: {', '.join(wanted)}; name each once")


def _set_compute_capabilities(trt: Any, config: Any, wanted: Sequence[str]) -> None:
    check_compute_capabilities(trt, wanted)
    if wanted:
        config.num_compute_capabilities = len(wanted)
    for index, version in enumerate(wanted):
        config.set_compute_capability(getattr(trt.ComputeCapability, "SM" + version.replace(".", "")), index)


def error_logger(trt: Any) -> Any:
    """Return a logger that keeps the errors, to be given as the reason of a failure."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()  # pybind refuses an object whose own part was not made
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()


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
