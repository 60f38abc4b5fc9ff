"""More styles than one run generates: each image is encoded once, and its styles are generated in parts.

The codes stay on the GPU in the memory of the recording that made them, from where each part copies the
one that it needs.

It has not run on a GPU yet: the tests drive it with stand-ins for cuda-bindings and TensorRT.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ...cuda.gpu_call import GpuCall
from ...cuda.work import Resources
from ...images import Pixels
from ...style import Codes
from ..parts import style_parts
from .generation import Generation
from .graph import Execution, Recording, port_bytes
from .lane import Lane, failing_for_good
from .recordings import Recordings


class Encoding(Recording):
    """The encoder for N images, from the host or from the GPU; its codes stay on the GPU."""

    def __init__(self, lane: Lane, images: int) -> None:
        """Prepare and record; errors as for `Recording`."""
        self._images = images
        super().__init__(lane)

    def code(self, image: int) -> int:
        """Return the address of an image's code, which the next encoding overwrites."""
        codes = self._encoder.network.output
        return self._encoder.addresses[codes.name] + port_bytes(codes, image)

    def upload(self, images: Pixels) -> None:
        """Enqueue the encoding of images [N, height, width, channels]; the upload before must be over."""
        self._host["image"][:] = images
        with failing_for_good():
            self._lane.stream.upload(self._image, self._staged)
            self._replay()

    def copy(self, source: int) -> None:
        """Enqueue the encoding of images at an address on the GPU."""
        with failing_for_good():
            self._lane.stream.copy(self._image, source, self._staged.nbytes)
            self._replay()

    def _prepare(self, made: Resources) -> None:
        network = self._lane.plans.networks["encoder"]
        size = max(self._images, network.min_batch)
        self._encoder = Execution(self._lane, made, network, size)
        self._image = self._encoder.addresses[network.inputs[0].name]
        self._staged = self._pinned(network.inputs[0], self._images)

    def _enqueue_first(self) -> None:
        size = port_bytes(self._encoder.network.inputs[0], self._encoder.size)
        self._lane.stream.clear(self._image, size)
        self._enqueue()

    def _enqueue(self) -> None:
        self._encoder.enqueue()


class StylesOfCode(Generation):
    """The generator for K styles of one code, which is copied from wherever it is on the GPU."""

    def __init__(self, lane: Lane, styles: int) -> None:
        """Prepare and record; errors as for `Recording`."""
        super().__init__(lane, 1, styles)

    def _prepare(self, made: Resources) -> None:
        self._prepare_generator(made)
        self._code = made.device_memory(self._code_bytes)

    def _enqueue_first(self) -> None:
        self._lane.stream.clear(self._code, self._code_bytes)
        self._clear_codes()
        self._enqueue()

    def _enqueue(self) -> None:
        self._upload_mix()
        self._repeat_codes(self._code)
        self._generator.enqueue()

    def _begin(self, code: int) -> None:
        self._lane.stream.copy(self._code, code, self._code_bytes)
        self._launch()


class HostStylesOfCode(StylesOfCode):
    """To a pinned buffer."""

    def run(self, code: int, reference: Codes, weights: Codes) -> Pixels:
        """Return pictures [K, height, width, 3] of the code at an address: a view, as `HostTranslation`'s."""
        self._fill_mix(reference, weights)
        self._lane.finish(partial(self._begin, code))
        pictures: Pixels = self._host["pictures"][: self._styles]
        return pictures

    def _prepare(self, made: Resources) -> None:
        super()._prepare(made)
        self._download = self._pinned(self._generator.network.output, self._generator.size, name="pictures")

    def _enqueue(self) -> None:
        super()._enqueue()
        self._lane.stream.download(self._download, self._picture)


class GpuStylesOfCode(StylesOfCode):
    """To an address on the GPU."""

    def enqueue(self, code: int, target: int, reference: Codes, weights: Codes) -> None:
        """Enqueue pictures of the code at an address; waits as `GpuTranslation` does."""
        self._fill_mix(reference, weights)
        with failing_for_good():
            self._begin(code)
            self._copy_pictures_to(target)


class StyleParts:
    """Translations of one lane whose styles are too many for one run."""

    def __init__(self, lane: Lane, recordings: Recordings, *, most: int) -> None:
        """Generate at most so many styles at once."""
        networks = lane.plans.networks
        self._lane, self._recordings = lane, recordings
        self._most_images = min(most, networks["encoder"].max_batch)
        self._most = min(most, networks["generator"].max_batch)

    def on_host(self, images: Pixels, reference: Codes, weights: Codes) -> Pixels:
        """Return pictures [N * K, height, width, 3] of images [N, height, width, channels].

        Raises:
            GpuFailed: The results cannot be trusted.
        """
        count, styles, picture = len(images), len(reference), self._lane.plans.networks["generator"].output
        results = np.empty((count, styles, *picture.shape), picture.dtype)
        for at in range(0, count, self._most_images):
            part = images[at : at + self._most_images]
            encoding = self._encoding(len(part))
            self._lane.finish(partial(encoding.upload, part))
            for image, rows in style_parts(len(part), styles, self._most):
                make = partial(HostStylesOfCode, self._lane, rows.stop - rows.start)
                key = ("host", rows.stop - rows.start)
                generation = self._recordings.get("styles", key, make, beside=encoding)
                code = encoding.code(image)
                results[at + image, rows] = generation.run(code, reference[rows], weights[rows])
        return results.reshape(-1, *picture.shape)

    def on_gpu(self, call: GpuCall, reference: Codes, weights: Codes) -> None:
        """Enqueue the translation of arrays on the GPU.

        Raises:
            GpuFailed: The GPU failed.
        """
        for at in range(0, call.count, self._most_images):
            count = min(self._most_images, call.count - at)
            encoding = self._encoding(count)
            encoding.copy(call.source_at(at))
            for image, rows in style_parts(count, len(reference), self._most):
                make = partial(GpuStylesOfCode, self._lane, rows.stop - rows.start)
                key = ("gpu", rows.stop - rows.start)
                generation = self._recordings.get("styles", key, make, beside=encoding)
                target = call.target_at(at + image, rows.start)
                generation.enqueue(encoding.code(image), target, reference[rows], weights[rows])

    def _encoding(self, images: int) -> Encoding:
        return self._recordings.get("encoding", images, partial(Encoding, self._lane, images))
