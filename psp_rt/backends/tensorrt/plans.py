"""Deserialized TensorRT plans, shared by a backend and its clones.

Names that differ between TensorRT 8.6, 10 and 11 are looked up, never assumed. Written against the Python
interfaces of TensorRT 8.6, 10.13 and TensorRT for RTX 1.7 (which has those of 11).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...cuda.device import CudaDevice, OutOfMemory
from ...engine.manifest import Manifest
from ...engine.ports import FoundPort, Port, check_ports, graph_ports
from ...errors import BackendError, FormatError
from ...hardware.tensorrt import error_logger

ReadPlan = Callable[[], "memoryview | bytes"]
_OUT_OF_MEMORY = re.compile(r"out ?of ?memory", re.IGNORECASE)  # OutOfMemory, "out of memory"


class Refused(BackendError):
    """TensorRT refused a request; nothing was started."""


class RefusedForMemory(Refused, OutOfMemory):
    """TensorRT has too little memory for a request; nothing was started."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """One deserialized plan."""

    name: str
    engine: Any
    inputs: list[Port]
    output: Port
    batches: tuple[tuple[int, int], ...]  # the smallest and the largest of each profile

    @property
    def max_batch(self) -> int:
        """Return the largest batch of any profile."""
        return max(largest for _, largest in self.batches)

    def fitting(self, rows: int) -> tuple[int, int]:
        """Return the profile for some rows, and the batch to run it with, which may be larger."""
        sizes = {
            profile: (max(rows, smallest), largest)
            for profile, (smallest, largest) in enumerate(self.batches)
            if rows <= largest
        }
        profile = min(sizes, key=lambda number: sizes[number])
        return profile, sizes[profile][0]


class LoadedPlans:
    """The plans of one target on one GPU, reference-counted: the last user releases them.

    TensorRT's execution contexts may run in several threads. Its documentation does not say so for creating
    them, so that happens under a lock.
    """

    def __init__(
        self, trt: Any, device: CudaDevice, manifest: Manifest, *, trusts_host_code: bool = False
    ) -> None:
        self.trt, self.device, self.manifest = trt, device, manifest
        # Reentrant: while it is held, garbage collection may drop a clone, which then releases these plans.
        self._lock, self._users = threading.RLock(), 1
        self.networks: dict[str, Network] = {}
        self._logger = error_logger(trt)
        self._runtime = self._created("runtime", lambda: trt.Runtime(self._logger))
        if trusts_host_code:  # a version-compatible plan brings the runtime that it was built with
            self._runtime.engine_host_code_allowed = True

    @classmethod
    def load(
        cls, trt: Any, index: int, manifest: Manifest, plans: Mapping[str, ReadPlan], *, compatible: bool
    ) -> LoadedPlans:
        """Deserialize plans on a GPU.

        Args:
            trt: The library.
            index: The GPU's number.
            manifest: The manifest of the plans' engine.
            plans: For each graph, a function that returns the plan's bytes.
            compatible: The plans are version-compatible.

        Raises:
            BackendError: TensorRT refuses a plan; the message has its reasons.
            DeviceError: The GPU cannot be used.
            FormatError: The inputs or outputs of a plan are not the manifest's.
        """
        device = CudaDevice(index)
        with ExitStack() as undo:
            undo.callback(_quietly, device.close)
            with device.current():
                loaded = cls(trt, device, manifest, trusts_host_code=compatible)
                undo.callback(loaded._release)
                for name, read in plans.items():
                    with memoryview(read()) as data:
                        loaded._deserialize(name, data)
            undo.pop_all()
        return loaded

    def share(self) -> LoadedPlans:
        """Count one more user."""
        with self._lock:
            self._users += 1
        return self

    def release(self) -> None:
        """Count one user less; the last one releases everything."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
        with ExitStack() as closing:
            closing.callback(self.device.close)
            with self.device.current("RELAXED"):
                self._release()

    @property
    def activation_bytes(self) -> int:
        """Return the memory that the largest network needs for its largest batch."""
        sizes = []
        for network in self.networks.values():
            engine = network.engine
            current = hasattr(engine, "device_memory_size_v2")  # since 10.1; the old name warns there
            sizes.append(int(engine.device_memory_size_v2 if current else engine.device_memory_size))
        return max([*sizes, 256])

    def images_at_once(self, styles: int) -> int:
        """Return how many images with so many styles each the plans take at once; may be 0."""
        return min(self.networks["encoder"].max_batch, self.networks["generator"].max_batch // styles)

    def execution_context(self, network: Network, memory: int, size: int) -> Any:
        """Return an execution context whose activations are in the given memory."""
        strategy = getattr(self.trt, "ExecutionContextAllocationStrategy", None)  # since 10
        engine = network.engine
        if strategy is None:
            create = engine.create_execution_context_without_device_memory
        else:
            create = partial(engine.create_execution_context, strategy.USER_MANAGED)
        with self._lock:
            context = self._created(f"execution context for the {network.name}", create)
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(memory, size)
        else:
            context.device_memory = memory
        return context

    def refused(self, what: str) -> Refused:
        """Return the error for a request that TensorRT refused, with its reasons."""
        reasons = "; ".join(self._logger.errors[-3:]) or "no reason given"
        self._logger.errors.clear()
        kind = RefusedForMemory if _OUT_OF_MEMORY.search(reasons) else Refused
        return kind(
            f"TensorRT {self.trt.__version__} {what} on {self.device.name}: {reasons}. "
            "Use backend='onnxruntime' to run without it"
        )

    def _created(self, what: str, create: Callable[[], Any]) -> Any:
        """Return what TensorRT creates. On failure it returns None, for which pybind may raise TypeError."""
        self._logger.errors.clear()
        try:
            made = create()
        except (TypeError, RuntimeError):
            made = None
        if made is None:
            raise self.refused(f"cannot create the {what}")
        return made

    def _deserialize(self, name: str, data: memoryview) -> None:
        engine = self._created(
            f"engine of the plan of the {name}", lambda: self._runtime.deserialize_cuda_engine(data)
        )
        inputs, outputs = graph_ports(self.manifest, name)
        what = f"the plan of the {name}"
        check_ports(what, "input", self._ports(engine, self.trt.TensorIOMode.INPUT), inputs)
        check_ports(what, "output", self._ports(engine, self.trt.TensorIOMode.OUTPUT), outputs)
        batches = []
        for profile in range(engine.num_optimization_profiles):
            shapes = engine.get_tensor_profile_shape(inputs[0].name, profile)
            smallest, _, largest = (int(shape[0]) for shape in shapes)
            if not 1 <= smallest <= largest:
                raise FormatError(
                    f"{what} takes batches of {smallest} to {largest}; build it again with: psp-rt build "
                    "ENGINE"
                )
            batches.append((smallest, largest))
        self.networks[name] = Network(
            name=name,
            engine=engine,
            inputs=inputs,
            output=outputs[0],
            batches=tuple(batches),
        )

    def _ports(self, engine: Any, mode: Any) -> list[FoundPort]:
        types = {self.trt.DataType.FLOAT: "float32", self.trt.DataType.UINT8: "uint8"}
        found = []
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            if engine.get_tensor_mode(name) != mode:
                continue
            kind, sizes = engine.get_tensor_dtype(name), tuple(engine.get_tensor_shape(name))
            shape = tuple(None if size < 0 else int(size) for size in sizes)
            # A profile for one batch size may fix the batch; the profile says which sizes there are.
            found.append(FoundPort(name=name, dtype=types.get(kind, str(kind)), shape=(None, *shape[1:])))
        return found

    def _release(self) -> None:
        """Release TensorRT's objects, the engines before the runtime."""
        self.networks = {}
        self._runtime = None


def _quietly(close: Callable[[], None]) -> None:
    """Close after an error, which matters more than a second one."""
    with suppress(BackendError):
        close()
