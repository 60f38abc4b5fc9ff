"""The graphs as TensorRT plans, on an NVIDIA GPU.

A translation - encoder, mix and generator - is recorded once for each number of images and styles as one CUDA
graph, copies in and out included, and then replayed by one launch; the codes never leave the GPU. So is each
network alone, for each batch size, for `encode`, `map` and `generate`. The last few of each are kept. A batch
above the plan's largest is split; one below its smallest is filled up with zeros, whose results are dropped.
Where the styles are too many for one launch, an image is encoded once and its styles follow in parts.

The frames of a stream overlap their copies with each other's work: see `tensorrt_frames`.

The activations, the bulk of the memory, lie in one block for each backend, since its graphs never run at
the same time. The block is taken on opening, for the largest batch, so that too little memory shows then
and not in the middle of work. Clones have blocks of their own and share the weights.

It has not run on a GPU yet: the tests drive it with stand-ins for cuda-bindings and TensorRT.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...build.builder import load_library
from ...cuda.gpu_call import GpuCall, GpuRequest, callers_stream
from ...cuda.work import Resources
from ...engine.manifest import Manifest
from ...engine.plans import read_plan, records
from ...engine.reader import EngineFile
from ...errors import BackendError
from ...images import Pixels
from ...streaming import AtWork
from ...style import Codes
from ..backend import GraphCalls
from .frames import FrameLanes
from .graph import NetworkRecording
from .lane import GpuFailed, Lane, failing_for_good
from .plans import LoadedPlans, ReadPlan
from .recordings import Recordings
from .styles import StyleParts
from .translation import GpuTranslation, HostTranslation


class TensorRtBackend(GraphCalls):
    """Plans on one GPU; clones run the same ones beside this, with memory of their own."""

    name = "tensorrt"

    def __init__(self, plans: LoadedPlans, *, precision: str, description: str) -> None:
        """Take over one use of the plans, and the memory for running them."""
        self.precision, self.description, self.device = precision, description, plans.device.name
        self._plans = plans
        self._closed, self._broken = True, ""
        with ExitStack() as undo:
            undo.callback(plans.release)
            with plans.device.current(), Resources(plans.device) as made:
                self._lane = Lane(plans, made)
            undo.pop_all()
        self._frames = FrameLanes(self._lane)
        self._recordings = Recordings(make_room=self._frames.drop_idle)
        self._closed = False

    @classmethod
    def open(cls, engine: EngineFile, *, device: str, target: str) -> TensorRtBackend:
        """Load the plans of a target that :func:`psp_rt.plans.choose` found fit.

        Args:
            engine: What holds them.
            device: "cuda:N".
            target: Which plans.

        Raises:
            BackendError: TensorRT refuses a plan, or there is too little memory.
            DeviceError: The GPU cannot be used.
            FormatError: A plan is damaged, or its inputs or outputs are not the manifest's.
        """
        record, trt = records(engine)[target], load_library(rtx=False)
        names = ["mapping", "generator"] + ["encoder"] * (engine.manifest.input is not None)
        read: dict[str, ReadPlan] = {name: partial(read_plan, engine, target, name) for name in names}
        plans = LoadedPlans.load(
            trt, int(device.partition(":")[2]), engine.manifest, read, compatible=record.version_compatible
        )
        description = f"TensorRT {trt.__version__}, {record.precision}"
        return cls(plans, precision=record.precision, description=description)

    @classmethod
    def open_files(cls, files: dict[str, Path], manifest: Manifest) -> TensorRtBackend:
        """Load plans that were just built on the first GPU, by the graph's name; errors as for `open`."""
        trt = load_library(rtx=False)
        read: dict[str, ReadPlan] = {name: path.read_bytes for name, path in files.items()}
        plans = LoadedPlans.load(trt, 0, manifest, read, compatible=True)
        description = f"TensorRT {trt.__version__}, {manifest.precision}"
        return cls(plans, precision=manifest.precision, description=description)

    def clone(self) -> TensorRtBackend:
        """Return a backend on the same weights, with a stream, graphs and activations of its own."""
        self._check_usable()
        return TensorRtBackend(self._plans.share(), precision=self.precision, description=self.description)

    def close(self) -> None:
        """Let go of everything that no clone uses. Closing twice is allowed."""
        if self._closed:
            return
        self._closed = True
        # Where the GPU has failed, so will the releases; its first error has been told already.
        with suppress(BackendError) if self._broken else nullcontext(), ExitStack() as closing:
            closing.callback(self._plans.release)
            device = self._plans.device
            with device.current(), device.in_any_capture(), ExitStack() as releases:
                releases.callback(self._lane.made.close)
                releases.callback(self._recordings.close)
                releases.callback(self._frames.close)
                releases.callback(self._lane.close)

    def __del__(self) -> None:
        """Return the memory of a backend that was dropped without closing it."""
        if not sys.is_finalizing():
            with suppress(Exception):  # it may not have come into being
                self.close()

    def translate(self, images: Pixels, reference: Codes, weights: Codes) -> Pixels:
        """Return RGB [N * K, height, width, 3], by one launch for each part that the plans take."""
        self._check_usable()
        count, styles, picture = len(images), len(reference), self._plans.networks["generator"].output
        most = self._plans.images_at_once(styles)
        if not most:  # the plan's largest batch is smaller than the number of styles
            largest = self._plans.networks["generator"].max_batch
            return self.translate_in_parts(images, reference, weights, most=largest)
        results = np.empty((count * styles, *picture.shape), picture.dtype)
        with self._plans.device.current(), self._noticing_failures():
            for at in range(0, count, most):
                part = images[at : at + most]
                recording = self._host_translation(len(part), styles)
                rows = slice(at * styles, (at + len(part)) * styles)
                results[rows] = recording.run(part, reference, weights)
        return results

    def translate_in_parts(self, images: Pixels, reference: Codes, weights: Codes, *, most: int) -> Pixels:
        """Return the same, generating at most so many styles at once; each image is encoded once."""
        self._check_usable()
        with self._plans.device.current(), self._noticing_failures():
            return StyleParts(self._lane, self._recordings, most=most).on_host(images, reference, weights)

    def begin(self, images: Pixels, reference: Codes, weights: Codes) -> AtWork[Pixels] | None:
        """Begin a translation in a lane of its own, if there is one and the plans take it at once."""
        self._check_usable()
        if len(images) > self._plans.images_at_once(len(reference)):
            return None
        with self._plans.device.current(), self._noticing_failures():
            begun = self._frames.begin(images, reference, weights)
        return begun and AtWork(finish=partial(self._finish_frame, begun), abandon=begun.abandon)

    def translate_on_gpu(self, request: GpuRequest) -> Any:
        """Translate arrays on the GPU; each byte stays there."""
        self._check_usable()
        plans, lane, device = self._plans, self._lane, self._plans.device
        with device.current(), self._noticing_failures():
            caller = callers_stream(request, device)
            call = GpuCall.open(request, plans.manifest, device=device, caller=caller, own=lane.stream)
            with lane.between(caller, uses=call) if caller else lane.waited_for():
                self._enqueue_on_gpu(call, request)
                with failing_for_good():
                    call.enqueued(lane.stream)
        return call.returned

    def _finish_frame(self, begun: AtWork[Pixels]) -> Pixels:
        with self._noticing_failures():
            return begun.finish()

    def _enqueue_on_gpu(self, call: GpuCall, request: GpuRequest) -> None:
        reference, weights = request.reference, request.weights
        styles = len(reference)
        most = min(self._plans.images_at_once(styles), request.max_batch // styles)
        if not most:
            StyleParts(self._lane, self._recordings, most=request.max_batch).on_gpu(call, reference, weights)
        for part in call.parts(most) if most else ():
            recording = self._gpu_translation(part.images, styles)
            recording.enqueue(part.source, part.target, reference, weights)

    def _run(self, name: str, feeds: dict[str, Any]) -> Any:
        """Run a network on a batch, in parts that its plan takes; the result is the caller's."""
        self._check_usable()
        network = self._plans.networks[name]
        count = len(next(iter(feeds.values())))
        results = np.empty((count, *network.output.shape), network.output.dtype)
        with self._plans.device.current(), self._noticing_failures():
            for at in range(0, count, network.max_batch):
                rows = slice(at, min(at + network.max_batch, count))
                size = max(rows.stop - at, network.min_batch)
                make = partial(NetworkRecording, self._lane, network, size)
                recording = self._recordings.get(name, size, make)
                results[rows] = recording.run({key: values[rows] for key, values in feeds.items()})
        return results

    def _host_translation(self, images: int, styles: int) -> HostTranslation:
        make = partial(HostTranslation, self._lane, images, styles)
        return self._recordings.get("translation", ("host", images, styles), make)

    def _gpu_translation(self, images: int, styles: int) -> GpuTranslation:
        make = partial(GpuTranslation, self._lane, images, styles)
        return self._recordings.get("translation", ("gpu", images, styles), make)

    @contextmanager
    def _noticing_failures(self) -> Iterator[None]:
        """Remember where the GPU itself fails: nothing after it can be trusted."""
        try:
            yield
        except GpuFailed as failure:
            self._broken = str(failure.error)
            raise failure.error from failure

    def _check_usable(self) -> None:
        if self._closed:
            raise BackendError("this TensorRT backend is closed; open the engine again")
        if self._broken:
            raise BackendError(
                f"the GPU failed before ({self._broken}), and results after that cannot be trusted; "
                "close this translator and open the engine again, in a new process if it fails once more"
            )
