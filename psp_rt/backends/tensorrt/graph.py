"""CUDA graphs of TensorRT networks: record once for each batch size, then replay by one launch.

It has not run on a GPU yet: the tests drive it with stand-ins for cuda-bindings and TensorRT.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...cuda.work import Bytes, Graph, Resources
from ...engine.ports import Port
from ...errors import FormatError
from .lane import Lane
from .plans import Network


class Execution:
    """A network's execution context for one batch size, and the memory on the GPU that it works on.

    Each recording has contexts of its own: one that is told another shape may change what a graph has
    recorded.
    """

    def __init__(
        self,
        lane: Lane,
        made: Resources,
        network: Network,
        size: int,
        *,
        shared: Mapping[str, int] | None = None,
    ) -> None:
        """Prepare it among the given resources.

        Args:
            shared: Addresses of inputs or outputs that lie in memory of the caller's.

        Raises:
            BackendError: TensorRT refuses, or there is too little memory.
            FormatError: The output is not what the manifest promises.
        """
        self.network, self.size = network, size
        self._lane = lane
        memory = lane.activations
        self._context = lane.plans.execution_context(network, memory.address, memory.size)
        made.keep(self._drop)
        self._set_profile()
        for port in network.inputs:
            self._set_shape(port)
        self._check_output(network.output)
        self.addresses = dict(shared or {})
        for port in (*network.inputs, network.output):
            if port.name not in self.addresses:
                self.addresses[port.name] = made.device_memory(port_bytes(port, size))
            self._set_address(port)

    def enqueue(self) -> None:
        """Enqueue one run, in the lane's stream."""
        # Were a refusal let pass in a capture, every replay would return stale results.
        self._check(self._context.execute_async_v3(self._lane.stream.number), "refused to run")

    def _set_profile(self) -> None:
        """Choose the profile: TensorRT 8.6 does so by itself for the first context of an engine alone."""
        if self._context.active_optimization_profile == 0:
            return
        stream = self._lane.stream
        self._check(
            self._context.set_optimization_profile_async(0, stream.number), "does not share its profile"
        )
        stream.synchronize()

    def _set_shape(self, port: Port) -> None:
        shape = (self.size, *port.shape)
        self._check(self._context.set_input_shape(port.name, shape), f"takes no {port.name} {list(shape)}")

    def _set_address(self, port: Port) -> None:
        accepted = self._context.set_tensor_address(port.name, self.addresses[port.name])
        self._check(accepted, f"takes no memory for {port.name}")

    def _check_output(self, port: Port) -> None:
        found, expected = tuple(self._context.get_tensor_shape(port.name)), (self.size, *port.shape)
        if found != expected:
            raise FormatError(
                f"the plan of the {self.network.name} gives {port.name} {list(found)}; the manifest "
                f"promises {list(expected)}; build it again with: psp-rt build ENGINE"
            )

    def _check(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise self._lane.plans.refused(f"{what} in the {self.network.name}")

    def _drop(self) -> None:
        """Let go of the execution context, while the GPU's context is current."""
        self._context = None


class Recording(ABC):
    """Work that is recorded once, on buffers of its own, and replayed by one launch."""

    def __init__(self, lane: Lane) -> None:
        """Prepare and record; whatever was made is released where a step fails.

        Raises:
            BackendError: A step failed.
            GpuFailed: The first run failed on the GPU.
        """
        self._lane = lane
        self._host: dict[str, Any] = {}
        with Resources(lane.device) as made:
            self._made = made
            made.keep(self._host.clear)
            self._prepare(made)
            # TensorRT allocates on its first run, which a capture forbids.
            lane.finish(self._run_first)
            self._graph: Graph = made.captured(lane.stream, self._enqueue)

    def close(self) -> None:
        """Release the graph, the buffers and the execution contexts, after work that uses them."""
        self._lane.settle()
        self._made.close()

    def _replay(self) -> None:
        """Enqueue the recorded work, when its turn in the activations comes."""
        with self._lane.activations.in_turn(self._lane.stream):
            self._graph.launch(self._lane.stream)

    def _run_first(self) -> None:
        with self._lane.activations.in_turn(self._lane.stream):
            self._enqueue_first()

    @abstractmethod
    def _prepare(self, made: Resources) -> None:
        """Make what the work needs."""

    @abstractmethod
    def _enqueue(self) -> None:
        """Enqueue the work, in the lane's stream."""

    def _enqueue_first(self) -> None:
        """Enqueue the work for the first time, which nothing records."""
        self._enqueue()

    def _pinned(self, port: Port, size: int, *, name: str = "") -> Bytes:
        """Return zeroed memory that the GPU copies by itself; ``_host`` has it in the shape of the port."""
        memory = self._made.pinned_memory(port_bytes(port, size))
        memory[:] = 0
        self._host[name or port.name] = memory.view(port.dtype).reshape(size, *port.shape)
        return memory


class NetworkRecording(Recording):
    """One network at one batch size, between pinned buffers."""

    def __init__(self, lane: Lane, network: Network, size: int) -> None:
        self._network, self._size = network, size
        super().__init__(lane)

    def run(self, feeds: dict[str, Any]) -> Any:
        """Return the results of at most ``size`` rows: a view that the next run overwrites.

        Raises:
            GpuFailed: The results cannot be trusted.
        """
        count = len(next(iter(feeds.values())))
        for name, rows in feeds.items():
            self._host[name][:count] = rows
            self._host[name][count:] = 0
        self._lane.finish(self._replay)
        return self._host[self._network.output.name][:count]

    def _prepare(self, made: Resources) -> None:
        network = self._network
        self._execution = Execution(self._lane, made, network, self._size)
        self._uploads = {port.name: self._pinned(port, self._size) for port in network.inputs}
        self._download = self._pinned(network.output, self._size)

    def _enqueue(self) -> None:
        stream, addresses = self._lane.stream, self._execution.addresses
        for name, host in self._uploads.items():
            stream.upload(addresses[name], host)
        self._execution.enqueue()
        stream.download(self._download, addresses[self._network.output.name])


def port_bytes(port: Port, size: int) -> int:
    """Return the memory that a batch takes."""
    return int(np.prod((size, *port.shape))) * np.dtype(port.dtype).itemsize
