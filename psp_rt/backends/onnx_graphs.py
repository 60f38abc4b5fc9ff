"""ONNX Runtime's own CUDA graphs: each network is recorded for each number of rows, and then replayed.

A replay costs one launch instead of hundreds. ONNX Runtime checks little of what that takes, so it is seen
to here:

- A replay reads and writes the addresses that were recorded, whatever a run is given. So inputs and outputs
  lie in memory that is taken once for each number of rows. It is not of the session's own, whose free memory
  every replay may overwrite.
- A session knows its graphs by the run option ``gpu_graph_id``: one for each number of rows.
- What was recorded is known to the thread that recorded it alone, and runs of one session must not overlap.
  So all runs are in one thread, and clones take turns in it.
- Kernels are chosen and noise is seeded when a graph is recorded: engines with drawn noise are refused.
- Nodes on the CPU that are more than shapes are refused by ONNX Runtime, on loading.
- It records in CUDA's global mode: meanwhile allocations on the GPU by other threads fail (not seen to here).

It is off unless asked for, because none of this could be tried on a GPU yet: the above is from ONNX Runtime's
documents and source. And a recording is compared with a plain run before it is used. ONNX Runtime keeps what
it has recorded until its session ends: at most `max_batch` graphs of each network.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..cuda.gpu_call import GpuCall, GpuRequest
from ..cuda.work import Stream
from ..engine.ports import Port, graph_ports
from ..errors import BackendError
from ..images import Pixels
from ..style import Codes
from .onnx_binding import BoundGraphs, Memory, mix
from .tensorrt.users import Users

GRAPH_ID = "gpu_graph_id"  # a run option; -1 neither records nor replays, 0 is ONNX Runtime's own
NO_GRAPH = "-1"
RECORDING_RUNS = 3  # of which the last records at the latest; newer versions do all of it in the first
CLOSE = 1e-3  # of a result's range: a plain run may have taken other kernels, whose sums differ
Result = TypeVar("Result")


class Recorded:
    """One network for one number of rows, on memory of its own."""

    def __init__(self, session: Any, name: str, *, inputs: dict[str, Any], output: Any, port: Port) -> None:
        """Bind the memory, OrtValues on the device; nothing is recorded yet."""
        self.inputs, self.output = inputs, output
        self._session, self._name, self._rows = session, name, output.shape()[0]
        self._binding = session.io_binding()
        for key, value in inputs.items():
            self._binding.bind_ortvalue_input(key, value)
        self._binding.bind_ortvalue_output(port.name, output)
        self._is_recorded = False

    def run(self) -> None:
        """Compute the output from what the inputs hold now.

        Raises:
            BackendError: A replay does not give what a plain run gives.
        """
        if self._is_recorded:
            self._run(str(self._rows))
        else:
            self._record()
            self._is_recorded = True

    def _record(self) -> None:
        """Record with other values in the inputs, so that the comparison shows a replay that keeps those."""
        given = {key: _on_host(value) for key, value in self.inputs.items()}
        self._run(NO_GRAPH)
        expected = _on_host(self.output)
        for key, value in self.inputs.items():
            value.update_inplace(np.zeros_like(given[key]))
        for _ in range(RECORDING_RUNS):
            self._run(str(self._rows))
        for key, value in self.inputs.items():
            value.update_inplace(given[key])
        self.output.update_inplace(np.zeros_like(expected))  # or a replay that does nothing might pass
        self._run(str(self._rows))
        if not _alike(_on_host(self.output), expected):
            raise BackendError(
                f"the CUDA graph that ONNX Runtime recorded of the {self._name} gives other results than a "
                "plain run; open the engine without onnx_cuda_graphs"
            )

    def _run(self, graph: str) -> None:
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.add_run_config_entry(GRAPH_ID, graph)
        self._session.run_with_iobinding(self._binding, options)


@dataclass(kw_only=True)
class RecordedGraphs(BoundGraphs):
    """Encoder and generator of one engine, recorded; for one backend and its clones, its users."""

    _runs: dict[tuple[str, int], Recorded] = field(default_factory=dict)
    _codes: dict[int, Any] = field(default_factory=dict)
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="psp_rt-onnx")
    )

    _users: Users = field(default_factory=Users)

    def share(self) -> RecordedGraphs:
        """Count one more user."""
        self._users.join()
        return self

    def release(self) -> None:
        """Count one user less; the last one ends the thread, after a call at work, and frees the memory."""
        if not self._users.leave():
            return
        self._thread.shutdown(wait=True)
        self._runs.clear()
        self._codes.clear()
        self.sessions = {}

    def translate(self, images: Pixels, reference: Codes, weights: Codes) -> Pixels:
        """Return RGB [N * K, height, width, 3], the K styles of an image together."""
        return self._in_thread(partial(super().translate, images, reference, weights))

    def translate_in_parts(self, images: Pixels, reference: Codes, weights: Codes, *, most: int) -> Pixels:
        """Return the same, generating at most so many styles at once; each image is encoded once."""
        return self._in_thread(partial(super().translate_in_parts, images, reference, weights, most=most))

    def translate_on_gpu(self, call: GpuCall, request: GpuRequest, stream: Stream) -> None:
        """Translate images to pictures, which are copied on the GPU to and from the recorded memory."""
        translate = super().translate_on_gpu

        def in_context() -> None:
            with stream.device.current():
                translate(call, request, stream)

        self._in_thread(in_context)

    def run(self, name: str, feeds: dict[str, npt.NDArray[Any]]) -> Any:
        """Return the output of the encoder or the generator, memory of the caller's own."""
        rows = len(next(iter(feeds.values())))
        return self._in_thread(lambda: _on_host(self._output(name, rows, feeds)))

    def _in_thread(self, work: Callable[[], Result]) -> Result:
        return self._thread.submit(work).result()

    def _encoded(self, images: Pixels | Memory, count: int) -> Any:
        return self._output("encoder", count, {"image": images})

    def _kept(self, codes: Any) -> Any:
        # A part of as many styles as there are images has its codes where these are.
        return self._copied(codes, list(range(codes.shape()[0])))

    def _generated(self, codes: Any, rows: list[int], reference: Codes, weights: Codes) -> Pixels:
        return _on_host(self._mixed(codes, rows, reference, weights))

    def _generate_to(
        self, target: Memory, codes: Any, rows: list[int], reference: Codes, weights: Codes
    ) -> None:
        pictures = self._mixed(codes, rows, reference, weights)
        target.stream.copy(target.address, pictures.data_ptr(), target.nbytes)
        target.stream.synchronize()  # or the next run might overwrite them before

    def _mixed(self, codes: Any, rows: list[int], reference: Codes, weights: Codes) -> Any:
        """Return pictures on the device, where the next run of as many puts its own."""
        recorded = self._recorded("generator", len(rows))
        if codes is not recorded.inputs["codes"]:
            self._copied(codes, rows, to=recorded.inputs["codes"])
        return self._output("generator", len(rows), mix(len(rows), reference, weights))

    def _output(self, name: str, rows: int, feeds: dict[str, Any]) -> Any:
        """Return the output of a run, on the device; inputs that are not given are there already."""
        with self._failing(f"the {name}"):
            recorded = self._recorded(name, rows)
            for key, value in feeds.items():
                _fill(recorded.inputs[key], value)
            recorded.run()
        return recorded.output

    def _recorded(self, name: str, rows: int) -> Recorded:
        if (name, rows) not in self._runs:
            inputs, (output,) = graph_ports(self.manifest, name)
            self._runs[name, rows] = Recorded(
                self.sessions[name],
                name,
                inputs={port.name: self._memory_for(port, rows) for port in inputs},
                output=self._memory_for(output, rows),
                port=output,
            )
        return self._runs[name, rows]

    def _memory_for(self, port: Port, rows: int) -> Any:
        """Return an OrtValue; codes of as many rows are in the same one for both networks."""
        import onnxruntime

        if port.name == "codes" and rows in self._codes:
            return self._codes[rows]
        made = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
            (rows, *port.shape), np.dtype(port.dtype), *self._here
        )
        if port.name == "codes":
            self._codes[rows] = made
        return made


def _on_host(value: Any) -> npt.NDArray[Any]:
    """Return a copy of an OrtValue; what its numpy() gives may be its own memory."""
    return np.array(value.numpy())


def _fill(place: Any, value: npt.NDArray[Any] | Memory) -> None:
    """Copy values into an OrtValue on the device."""
    if isinstance(value, Memory):
        value.stream.copy(place.data_ptr(), value.address, value.nbytes)
        value.stream.synchronize()  # ONNX Runtime's own stream knows nothing of this one
    else:
        place.update_inplace(np.ascontiguousarray(value))


def _alike(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> bool:
    """Return whether results are equal but for the order of sums; pictures, within a grey level."""
    difference = np.abs(found.astype(np.float32) - expected.astype(np.float32)).max()
    spread = float(np.ptp(expected.astype(np.float32)))
    return bool(difference <= max(CLOSE * spread, 1.0 if expected.dtype == np.uint8 else 0.0))
