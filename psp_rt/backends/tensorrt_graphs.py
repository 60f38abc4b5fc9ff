"""CUDA graphs of TensorRT networks: record once for each batch size, then replay by one launch.

It has not run on a GPU yet: the tests drive it with stand-ins for cuda-bindings and TensorRT.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from ..cuda import Bytes, CudaDevice, Event, Graph, Resources, Stream
from ..errors import BackendError, FormatError
from .ports import Port
from .tensorrt_plans import LoadedPlans, Network, Refused


class GpuFailed(Exception):
    """Work failed on the GPU after it was enqueued: its buffers hold nobody knows what."""

    def __init__(self, error: BackendError) -> None:
        super().__init__(str(error))
        self.error = error


class Lane:
    """What the recordings of one backend share: a stream, the point to wait for, and activation memory."""

    def __init__(self, plans: LoadedPlans, made: Resources) -> None:
        """Make them among the given resources, which the caller releases."""
        self.plans, self.made = plans, made
        self.stream: Stream = made.stream()
        self._done: Event = made.event()
        self.activation_bytes = plans.activation_bytes
        self.activations = made.device_memory(self.activation_bytes)

    @property
    def device(self) -> CudaDevice:
        """Return the GPU."""
        return self.plans.device

    def finish(self, enqueue: Callable[[], None]) -> None:
        """Enqueue work and wait for it.

        Raises:
            Refused: TensorRT would not enqueue it; what came before it has ended.
            GpuFailed: It failed, or whether it did is not known.
        """
        try:
            enqueue()
            self._done.record(self.stream)
            self._done.synchronize()
        except Refused:
            self._settle()
            raise
        except BackendError as error:
            raise GpuFailed(error) from error
        except BaseException:  # an interrupt
            self._settle()
            raise

    def _settle(self) -> None:
        """Let nothing go on in buffers that are about to be filled anew or released."""
        with suppress(BackendError):
            self.stream.synchronize()


class Recording:
    """One network at one batch size, recorded between pinned buffers of its own.

    It has an execution context of its own too: a context that is told another shape may change what a
    graph has recorded.
    """

    def __init__(self, lane: Lane, network: Network, size: int) -> None:
        """Prepare and record; whatever was made is released where a step fails.

        Raises:
            BackendError: A step failed.
            GpuFailed: The first run failed on the GPU.
        """
        self._lane, self._network, self._size = lane, network, size
        self._host: dict[str, Any] = {}
        with Resources(lane.device) as made:
            self._made = made
            self._context = lane.plans.execution_context(network, lane.activations, lane.activation_bytes)
            made.keep(self._drop)
            self._set_profile()
            for port in network.inputs:
                self._set_shape(port)
            self._uploads = [self._buffers(port) for port in network.inputs]
            self._check_output(network.output)
            self._download = self._buffers(network.output)
            # TensorRT allocates on its first run, which a capture forbids.
            lane.finish(self._enqueue)
            self._graph: Graph = made.captured(lane.stream, self._enqueue)

    def run(self, feeds: dict[str, Any]) -> Any:
        """Return the results of at most ``size`` rows: a view that the next run overwrites.

        Raises:
            GpuFailed: The results cannot be trusted.
        """
        count = len(next(iter(feeds.values())))
        for name, rows in feeds.items():
            self._host[name][:count] = rows
            self._host[name][count:] = 0
        self._lane.finish(lambda: self._graph.launch(self._lane.stream))
        return self._host[self._network.output.name][:count]

    def close(self) -> None:
        """Release the graph, the buffers and the execution context."""
        self._made.close()

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
        shape = (self._size, *port.shape)
        self._check(self._context.set_input_shape(port.name, shape), f"takes no {port.name} {list(shape)}")

    def _buffers(self, port: Port) -> tuple[int, Bytes]:
        """Return a port's memory on the GPU, which TensorRT is told, and its pinned memory."""
        shape, kind = (self._size, *port.shape), np.dtype(port.dtype)
        size = int(np.prod(shape)) * kind.itemsize
        host, address = self._made.pinned_memory(size), self._made.device_memory(size)
        self._host[port.name] = host.view(kind).reshape(shape)
        self._check(self._context.set_tensor_address(port.name, address), f"takes no memory for {port.name}")
        return address, host

    def _check_output(self, port: Port) -> None:
        found, expected = tuple(self._context.get_tensor_shape(port.name)), (self._size, *port.shape)
        if found != expected:
            raise FormatError(
                f"the plan of the {self._network.name} gives {port.name} {list(found)}; the manifest "
                f"promises {list(expected)}; build it again with: psp-rt build ENGINE"
            )

    def _enqueue(self) -> None:
        stream = self._lane.stream
        for address, host in self._uploads:
            stream.upload(address, host)
        # Were a refusal let pass in a capture, every replay would return stale results.
        self._check(self._context.execute_async_v3(stream.number), "refused to run")
        address, host = self._download
        stream.download(host, address)

    def _check(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise self._lane.plans.refused(f"{what} in the {self._network.name}")

    def _drop(self) -> None:
        """Let go of the execution context, while the GPU's context is current."""
        self._context, self._host = None, {}
