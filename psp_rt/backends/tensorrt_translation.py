"""A whole translation as one CUDA graph: encoder, mix and generator, for N images and K styles.

The encoder's codes stay on the GPU: for one style they are written where the generator reads them, for
several the graph copies each row K times. Images and pictures are at its ends, on the host or on the GPU.

It has not run on a GPU yet: the tests drive it with stand-ins for cuda-bindings and TensorRT.
"""

from __future__ import annotations

import numpy as np

from ..cuda_work import Bytes, Event, Resources
from ..images import Pixels
from ..style import Codes
from .tensorrt_graphs import Execution, Recording, port_bytes
from .tensorrt_lane import Lane, failing_for_good


class Translation(Recording):
    """What translations have in common, whether their images come from the host or the GPU."""

    def __init__(self, lane: Lane, images: int, styles: int) -> None:
        """Prepare and record; errors as for `Recording`."""
        self._images, self._styles = images, styles
        super().__init__(lane)

    def _prepare(self, made: Resources) -> None:
        plans = self._lane.plans
        encoder, generator = plans.networks["encoder"], plans.networks["generator"]
        encoded = max(self._images, encoder.min_batch)
        generated = max(self._images * self._styles, generator.min_batch)
        codes, self._shared = encoder.output, {}
        if self._styles == 1:
            self._shared = {codes.name: made.device_memory(port_bytes(codes, max(encoded, generated)))}
        self._encoder = Execution(self._lane, made, encoder, encoded, shared=self._shared)
        self._generator = Execution(self._lane, made, generator, generated, shared=self._shared)
        self._image = self._encoder.addresses[encoder.inputs[0].name]
        self._picture = self._generator.addresses[generator.output.name]
        self._launched: Event = made.event()
        self._uploads: dict[int, Bytes] = {}
        for port in generator.inputs:
            if port.name != codes.name:
                self._uploads[self._generator.addresses[port.name]] = self._pinned(port, generated)

    def _enqueue_first(self) -> None:
        # Rows that no image reaches, in plans for larger batches, are zeros for good.
        for execution, port in (
            (self._encoder, self._encoder.network.inputs[0]),
            (self._generator, self._encoder.network.output),
        ):
            size = port_bytes(port, execution.size)
            self._lane.stream.clear(execution.addresses[port.name], size)
        self._enqueue()

    def _enqueue(self) -> None:
        stream = self._lane.stream
        for address, host in self._uploads.items():
            stream.upload(address, host)
        self._encoder.enqueue()
        if not self._shared:
            self._repeat_codes()
        self._generator.enqueue()

    def _repeat_codes(self) -> None:
        codes = self._encoder.network.output
        source, target = self._encoder.addresses[codes.name], self._generator.addresses[codes.name]
        size = port_bytes(codes, 1)
        for row in range(self._images * self._styles):
            self._lane.stream.copy(target + row * size, source + row // self._styles * size, size)

    def _fill_mix(self, reference: Codes, weights: Codes) -> None:
        pictures = self._images * self._styles
        mix = {
            "reference": np.tile(reference, (self._images, 1, 1)),
            "weights": np.tile(weights, (self._images, 1)),
        }
        if all(np.array_equal(self._host[name][:pictures], values) for name, values in mix.items()):
            return
        with failing_for_good():
            self._launched.synchronize()
        for name, values in mix.items():
            self._host[name][:pictures] = values


class HostTranslation(Translation):
    """Between pinned buffers: upload and download are part of the graph."""

    def run(self, images: Pixels, reference: Codes, weights: Codes) -> Pixels:
        """Return pictures [N * K, height, width, 3]: a view that the next run overwrites.

        Args:
            images: [N, height, width, channels].
            reference: [K, L, D].
            weights: [K, L].

        Raises:
            GpuFailed: The results cannot be trusted.
        """
        self._fill_mix(reference, weights)
        self._host["image"][: self._images] = images
        self._lane.finish(lambda: self._graph.launch(self._lane.stream))
        pictures: Pixels = self._host["pictures"][: self._images * self._styles]
        return pictures

    def _prepare(self, made: Resources) -> None:
        super()._prepare(made)
        self._upload = self._pinned(self._encoder.network.inputs[0], self._encoder.size, name="image")
        self._download = self._pinned(self._generator.network.output, self._generator.size, name="pictures")

    def _enqueue(self) -> None:
        self._lane.stream.upload(self._image, self._upload)
        super()._enqueue()
        self._lane.stream.download(self._download, self._picture)


class GpuTranslation(Translation):
    """Between arrays on the GPU, which are copied to and from the buffers that the graph has recorded."""

    def enqueue(self, source: int, target: int, reference: Codes, weights: Codes) -> None:
        """Enqueue a translation from one address to another.

        Waits only where reference or weights are others than in the run before, until the GPU has read
        those.

        Args:
            source: Of uint8 [N, height, width, channels].
            target: Of uint8 [N * K, height, width, 3].
            reference: [K, L, D].
            weights: [K, L].

        Raises:
            GpuFailed: The GPU failed.
        """
        stream = self._lane.stream
        self._fill_mix(reference, weights)
        with failing_for_good():
            stream.copy(self._image, source, port_bytes(self._encoder.network.inputs[0], self._images))
            self._graph.launch(stream)
            self._launched.record(stream)
            pictures = self._images * self._styles
            stream.copy(target, self._picture, port_bytes(self._generator.network.output, pictures))
