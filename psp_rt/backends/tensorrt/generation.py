"""The generator in a recording: codes on the GPU, K styles mixed into each, to pictures on the GPU.

It has not run on a GPU yet: the tests drive it with stand-ins for cuda-bindings and TensorRT.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...cuda.work import Bytes, Event, Resources
from ...style import Codes
from .graph import Execution, Recording, port_bytes
from .lane import Lane, failing_for_good


class Generation(Recording):
    """What recordings with the generator have in common, wherever their codes come from."""

    def __init__(self, lane: Lane, images: int, styles: int) -> None:
        """Prepare and record; errors as for `Recording`."""
        self._images, self._styles = images, styles
        super().__init__(lane)

    @property
    def _pictures(self) -> int:
        return self._images * self._styles

    def _prepare_generator(self, made: Resources, *, shared: Mapping[str, int] | None = None) -> None:
        """Make the generator, and what uploads the styles; codes come from shared memory, or by a copy."""
        network = self._lane.plans.networks["generator"]
        size = max(self._pictures, network.min_batch)
        self._generator = Execution(self._lane, made, network, size, shared=shared)
        self._picture = self._generator.addresses[network.output.name]
        self._launched: Event = made.event()
        codes, *mix = network.inputs
        self._codes, self._code_bytes = self._generator.addresses[codes.name], port_bytes(codes, 1)
        self._uploads: dict[int, Bytes] = {
            self._generator.addresses[port.name]: self._pinned(port, size) for port in mix
        }

    def _clear_codes(self) -> None:
        """Fill the codes with zeros: in plans for larger batches there are rows that no image reaches."""
        self._lane.stream.clear(self._codes, self._generator.size * self._code_bytes)

    def _upload_mix(self) -> None:
        for address, host in self._uploads.items():
            self._lane.stream.upload(address, host)

    def _repeat_codes(self, source: int) -> None:
        """Copy each of the codes at an address K times to where the generator reads them."""
        size = self._code_bytes
        for row in range(self._pictures):
            self._lane.stream.copy(self._codes + row * size, source + row // self._styles * size, size)

    def _fill_mix(self, reference: Codes, weights: Codes) -> None:
        """Put K styles where the graph uploads them from, once the run before has read its own."""
        mix = {
            "reference": np.tile(reference, (self._images, 1, 1)),
            "weights": np.tile(weights, (self._images, 1)),
        }
        if all(np.array_equal(self._host[name][: self._pictures], values) for name, values in mix.items()):
            return
        with failing_for_good():
            self._launched.synchronize()
        for name, values in mix.items():
            self._host[name][: self._pictures] = values

    def _launch(self) -> None:
        self._replay()
        self._launched.record(self._lane.stream)

    def _copy_pictures_to(self, target: int) -> None:
        port = self._generator.network.output
        self._lane.stream.copy(target, self._picture, port_bytes(port, self._pictures))
