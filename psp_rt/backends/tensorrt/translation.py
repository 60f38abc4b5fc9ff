"""A whole translation as one CUDA graph: encoder, mix and generator, for N images and K styles.

The encoder's codes stay on the GPU: for one style they are written where the generator reads them, for
several the graph copies each row K times. Images and pictures are at its ends, on the host or on the GPU.

It has not run on a GPU yet: the tests drive it with stand-ins for cuda-bindings and TensorRT.
"""

from __future__ import annotations

from ...cuda.work import Resources
from ...images import Pixels
from ...style import Codes
from .generation import Generation
from .graph import Execution, port_bytes
from .lane import failing_for_good


class Translation(Generation):
    """What translations have in common, whether their images come from the host or the GPU."""

    def _prepare(self, made: Resources) -> None:
        plans = self._lane.plans
        encoder, generator = plans.networks["encoder"], plans.networks["generator"]
        encoded = max(self._images, encoder.min_batch)
        generated = max(self._pictures, generator.min_batch)
        codes, self._shared = encoder.output, {}
        if self._styles == 1:
            self._shared = {codes.name: made.device_memory(port_bytes(codes, max(encoded, generated)))}
        self._encoder = Execution(self._lane, made, encoder, encoded, shared=self._shared)
        self._image = self._encoder.addresses[encoder.inputs[0].name]
        self._prepare_generator(made, shared=self._shared)

    def _enqueue_first(self) -> None:
        images = port_bytes(self._encoder.network.inputs[0], self._encoder.size)
        self._lane.stream.clear(self._image, images)
        self._clear_codes()
        self._enqueue()

    def _enqueue(self) -> None:
        self._upload_mix()
        self._encoder.enqueue()
        if not self._shared:
            self._repeat_codes(self._encoder.addresses[self._encoder.network.output.name])
        self._generator.enqueue()


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
        self._lane.finish(self._launch)
        pictures: Pixels = self._host["pictures"][: self._pictures]
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
        self._fill_mix(reference, weights)
        with failing_for_good():
            size = port_bytes(self._encoder.network.inputs[0], self._images)
            self._lane.stream.copy(self._image, source, size)
            self._launch()
            self._copy_pictures_to(target)
