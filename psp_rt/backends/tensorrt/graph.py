"""CUDA graphs of TensorRT networks, captured once for each size and then replayed by one launch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...cuda.device import Resources
from ...engine.ports import Port
from ...errors import BackendError, FormatError
from ..backend import Styles

if TYPE_CHECKING:
    from .plans import LoadedPlans, Network

Array = npt.NDArray[Any]


class Timeline:
    """The order of all runs of one backend, which share the memory for activations: one computes at a time.

    Runs in our own stream follow each other anyway. A run in a caller's stream, or after one, first waits on
    the GPU for the event at the end of the run before it. That holds for two runs in the same caller's
    stream, too: the driver reuses the handles of destroyed streams, so an equal handle need not be the same
    stream.
    """

    def __init__(self, plans: LoadedPlans, made: Resources) -> None:
        """Make a stream for calls without one, and take the memory for the largest batch.

        Raises:
            BackendError: There is too little memory.
        """
        self.plans = plans
        self.own = made.stream()
        self.activation_bytes = plans.activation_bytes
        self.activations = made.device_memory(self.activation_bytes)
        self._made, self._call = made, plans.device.call
        self._last: tuple[Any, Any] | None = None  # the stream of the last run, and the event at its end
        self._running: deque[tuple[Any, object]] = (
            deque()
        )  # such events, and what is used until they have passed
        self._spare: list[Any] = []

    def begin(self, stream: Any) -> None:
        """Let the next work in a stream wait for all runs before it."""
        if self._last is not None and not (stream is self.own is self._last[0]):
            self._call("cuStreamWaitEvent", stream, self._last[1], 0)

    def end(self, stream: Any, uses: object = None) -> Any:
        """Return the event after the work in a stream so far; what it uses is kept alive until then."""
        while self._running and self.plans.device.has_passed(self._running[0][0]):
            self._spare.append(self._running.popleft()[0])
        event = self._spare.pop() if self._spare else self._made.event()
        self._call("cuEventRecord", event, stream)
        self._last = stream, event
        self._running.append((event, uses))
        return event

    def settle(self, stream: Any = None) -> None:
        """Wait for all work, so that its buffers can be released; its errors are reported elsewhere."""
        waits = [("cuStreamSynchronize", self.own), ("cuStreamSynchronize", stream)]
        waits += [("cuEventSynchronize", event) for event, _ in self._running]
        for name, handle in waits:
            if handle is not None:
                with suppress(BackendError):
                    self._call(name, handle)
        self._running.clear()


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """GPU memory for the rows of one input or output."""

    address: int
    port: Port

    def row_bytes(self, rows: int) -> int:
        """Return the size of some rows."""
        return rows * math.prod(self.port.shape) * np.dtype(self.port.dtype).itemsize


class CapturedRun:
    """One network, or the encoder and the generator with K styles mixed in, as one CUDA graph.

    The graph contains only kernels, and copies of codes between its own buffers. Copies from and to the
    caller are enqueued around it, so the same graph serves arrays on the host and arrays on the GPU.
    """

    def __init__(self, timeline: Timeline, networks: Sequence[str], rows: int, styles: int = 1) -> None:
        """Prepare the buffers, run once and capture.

        Args:
            timeline: Orders this run and others.
            networks: ("encoder", "generator"), or one network.
            rows: How many rows the first network gets.
            styles: K; the second network gets rows * K.

        Raises:
            BackendError: TensorRT refuses, or there is too little memory.
            FormatError: An output is not what the manifest promises.
        """
        self._timeline, self._call = timeline, timeline.plans.device.call
        self._rows, self._styles, self._results = rows, styles, rows * styles
        self._networks = [timeline.plans.networks[name] for name in networks]
        self._contexts: list[Any] = []
        self._inputs: dict[str, Buffer] = {}
        self._staging: dict[str, Array] = {}  # pinned memory, taken when the first array on the host comes
        self._uploaded: Styles | None = None
        self._encoded: Buffer | None = None  # the encoder's codes, where two networks run
        with Resources(timeline.plans.device) as made:
            self._made, self._staged = made, made.event()
            try:
                self._prepare()
                # TensorRT allocates on its first run, which a capture forbids.
                timeline.begin(timeline.own)
                self._enqueue_networks()
                timeline.end(timeline.own)
                self._call("cuStreamSynchronize", timeline.own)
                self._graph = made.captured(timeline.own, self._enqueue_networks)
            except BaseException:
                timeline.settle()
                self._contexts.clear()
                raise

    def close(self) -> None:
        """Release the graph, the buffers and the execution contexts, after the work that uses them."""
        self._timeline.settle()
        self._contexts.clear()
        self._staging.clear()
        self._made.close()

    def enqueue(
        self,
        stream: Any,
        inputs: Mapping[str, Array | int],
        styles: Styles | None = None,
        *,
        target: int | None = None,
        uses: object = None,
    ) -> None:
        """Enqueue one run in a stream, behind all runs before it.

        Args:
            stream: The caller's, or the timeline's own.
            inputs: Arrays on the host, or addresses on the GPU.
            styles: The styles to mix in, which are uploaded when they are another object than in the run
                before.
            target: Where the output goes on the GPU; without it, `result` returns it.
            uses: What to keep alive until the run has ended.
        """
        self._timeline.begin(stream)

        # Arrays on the host go through pinned memory, once the GPU has read what is still in there.
        arrays = {name: value for name, value in inputs.items() if not isinstance(value, int)}
        if styles is not None and styles is not self._uploaded:
            arrays["reference"], arrays["weights"] = styles.repeated(self._rows)
        if arrays:
            self._uploaded = None
            self._call("cuEventSynchronize", self._staged)
            for name, values in arrays.items():
                buffer, staging = self._inputs[name], self._pinned(name, self._inputs[name], len(values))
                np.copyto(staging, values)
                self._call("cuMemcpyHtoDAsync", buffer.address, staging.ctypes.data, staging.nbytes, stream)
            self._call("cuEventRecord", self._staged, stream)

        # Arrays on the GPU are copied to the addresses that the graph has captured.
        for name, value in inputs.items():
            if isinstance(value, int):
                buffer = self._inputs[name]
                self._call("cuMemcpyDtoDAsync", buffer.address, value, buffer.row_bytes(self._rows), stream)

        self._call("cuGraphLaunch", self._graph, stream)

        # The output.
        size = self._output.row_bytes(self._results)
        if target is None:
            staging = self._pinned("output", self._output, self._results)
            self._call("cuMemcpyDtoHAsync", staging.ctypes.data, self._output.address, size, stream)
        else:
            self._call("cuMemcpyDtoDAsync", target, self._output.address, size, stream)
        self._done = self._timeline.end(stream, uses)
        self._uploaded = styles

    def result(self) -> Array:
        """Wait for the last run and return its output, a view that the next run overwrites."""
        self._call("cuEventSynchronize", self._done)
        return self._staging["output"]

    def _prepare(self) -> None:
        """Make an execution context for each network, and buffers for its inputs and its output."""
        timeline, last = self._timeline, self._networks[-1]
        counts = [self._results if network is last else self._rows for network in self._networks]
        fitting = [network.fitting(count) for count, network in zip(counts, self._networks, strict=True)]
        sizes = [size for _, size in fitting]
        for network, (profile, size) in zip(self._networks, fitting, strict=True):
            # A context of its own: setting another shape may change what a graph has captured.
            context = timeline.plans.execution_context(
                network, timeline.activations, timeline.activation_bytes
            )
            self._contexts.append(context)
            self._set_profile(network, context, profile)
            for port in network.inputs:
                shape = (size, *port.shape)
                self._ask(
                    network, f"takes no {port.name} {list(shape)}", context.set_input_shape, port.name, shape
                )
                # For one style the encoder writes where the generator reads.
                shared = self._encoded if port.name == "codes" and self._styles == 1 else None
                self._inputs[port.name] = shared or self._buffer(port, size)
                self._set_address(network, context, self._inputs[port.name])
            found, expected = (
                tuple(context.get_tensor_shape(network.output.name)),
                (size, *network.output.shape),
            )
            if found != expected:
                raise FormatError(
                    f"the plan of the {network.name} gives {network.output.name} {list(found)}; the manifest "
                    f"promises {list(expected)}; build it again with: psp-rt build ENGINE"
                )
            output = self._buffer(network.output, max(sizes))
            self._set_address(network, context, output)
            if network is last:
                self._output = output
            else:
                self._encoded = output

    def _enqueue_networks(self) -> None:
        """Enqueue the networks in the timeline's own stream; this is what the graph captures."""
        own = self._timeline.own
        for network, context in zip(self._networks, self._contexts, strict=True):
            if network.name == "generator" and self._encoded is not None and self._styles > 1:
                codes, size = self._inputs["codes"].address, self._encoded.row_bytes(1)
                for row in range(self._results):
                    source = self._encoded.address + row // self._styles * size
                    self._call("cuMemcpyDtoDAsync", codes + row * size, source, size, own)
            # If a refusal went unnoticed here, every replay would return stale results.
            self._ask(network, "refused to run", context.execute_async_v3, int(own))

    def _set_profile(self, network: Network, context: Any, profile: int) -> None:
        """Choose the profile. A new context has the first; in TensorRT 8.6, only the first context has."""
        if context.active_optimization_profile != profile:
            own = self._timeline.own
            choose = context.set_optimization_profile_async
            self._ask(network, f"does not share its profile {profile}", choose, profile, int(own))
            self._call("cuStreamSynchronize", own)

    def _set_address(self, network: Network, context: Any, buffer: Buffer) -> None:
        name = buffer.port.name
        self._ask(network, f"takes no memory for {name}", context.set_tensor_address, name, buffer.address)

    def _ask(self, network: Network, refusal: str, request: Callable[..., bool], *values: Any) -> None:
        """Ask TensorRT for something; it returns False, or pybind raises RuntimeError, where it refuses."""
        try:
            accepted = request(*values)
        except RuntimeError:
            accepted = False
        if not accepted:
            raise self._timeline.plans.refused(f"{refusal} in the {network.name}")

    def _buffer(self, port: Port, rows: int) -> Buffer:
        """Return GPU memory of zeros: a plan for larger batches also computes rows that no input reaches."""
        size = Buffer(address=0, port=port).row_bytes(rows)
        buffer = Buffer(address=self._made.device_memory(size), port=port)
        self._call("cuMemsetD8Async", buffer.address, 0, size, self._timeline.own)
        return buffer

    def _pinned(self, name: str, buffer: Buffer, rows: int) -> Array:
        """Return pinned memory [rows, ...] for an input or the output of every run."""
        if name not in self._staging:
            memory = self._made.pinned_memory(buffer.row_bytes(rows))
            self._staging[name] = memory.view(buffer.port.dtype).reshape(rows, *buffer.port.shape)
        return self._staging[name]
