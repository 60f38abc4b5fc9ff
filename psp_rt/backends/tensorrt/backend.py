"""The graphs as TensorRT plans on an NVIDIA GPU.

Encoder, mix and generator of one call are one CUDA graph for each number of images and styles, and so is each
network alone for each batch size. The graphs used last are kept. A batch above the plan's largest is split.

Activations, the bulk of the memory, are one block for each backend, taken on opening for the largest batch,
so that too little memory shows then. Clones have blocks of their own and share the weights.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cuda.arrays import GpuArrays, GpuPictures
from ...cuda.device import OutOfMemory, Resources
from ...engine.manifest import Manifest
from ...engine.plans import read_plan, records
from ...engine.reader import EngineFile
from ...errors import BackendError
from ...hardware.tensorrt import load_library
from ...images import Pixels
from ...native import calling, check_not_ending, owns
from ...style import Codes
from ..backend import Backend, GpuRequest, Styles, in_parts
from .graph import CapturedRun, Timeline
from .plans import LoadedPlans, ReadPlan, Refused

SIZES_KEPT = 4  # graphs of each network, and of translations
TRANSLATION = ("encoder", "generator")


class TensorRtBackend(Backend):
    """Plans on one GPU; clones run the same plans with memory of their own."""

    name = "tensorrt"

    def __init__(self, plans: LoadedPlans, *, precision: str, description: str) -> None:
        """Take over one use of the plans, and take the memory for running them."""
        self.precision, self.description, self.device = precision, description, plans.device.name
        self._plans = plans
        self._closed, self._broken = True, ""
        self._runs: defaultdict[tuple[str, ...], OrderedDict[tuple[int, int], CapturedRun]]
        self._runs = defaultdict(OrderedDict)
        with ExitStack() as undo:
            undo.callback(plans.release)
            with plans.device.current(), Resources(plans.device) as made:
                self._made, self._timeline = made, Timeline(plans, made)
            undo.pop_all()
        self._arrays = GpuArrays(plans.device)
        self._closed = False
        owns(self)

    @classmethod
    def open(cls, engine: EngineFile, *, device: str, target: str) -> TensorRtBackend:
        """Load the plans of a target that `psp_rt.engine.plans.choose` accepted.

        Args:
            engine: The engine that contains them.
            device: "cuda:N".
            target: Which plans.

        Raises:
            BackendError: TensorRT refuses a plan, or there is too little memory.
            DeviceError: The GPU cannot be used.
            FormatError: A plan is damaged, or its inputs or outputs are not the manifest's.
        """
        record = records(engine)[target]
        names = ["mapping", "generator"] + ["encoder"] * (engine.manifest.input is not None)
        read: dict[str, ReadPlan] = {name: partial(read_plan, engine, target, name) for name in names}
        return cls._open(
            read,
            engine.manifest,
            index=int(device.partition(":")[2]),
            precision=record.precision,
            compatible=record.version_compatible,
        )

    @classmethod
    def open_files(cls, files: dict[str, Path], manifest: Manifest) -> TensorRtBackend:
        """Load plans that were just built on the first GPU, by graph name; errors as for `open`."""
        read: dict[str, ReadPlan] = {name: path.read_bytes for name, path in files.items()}
        return cls._open(read, manifest, index=0, precision=manifest.precision, compatible=True)

    @classmethod
    def _open(
        cls, read: dict[str, ReadPlan], manifest: Manifest, *, index: int, precision: str, compatible: bool
    ) -> TensorRtBackend:
        trt = load_library()
        plans = LoadedPlans.load(trt, index, manifest, read, compatible=compatible)
        return cls(plans, precision=precision, description=f"TensorRT {trt.__version__}, {precision}")

    def clone(self) -> TensorRtBackend:
        """Return a backend on the same weights, with a stream, graphs and activations of its own."""
        self._check_usable()
        return TensorRtBackend(self._plans.share(), precision=self.precision, description=self.description)

    def close(self) -> None:
        """Release everything that no clone uses. Closing twice is allowed."""
        with calling():
            if not self._closed:
                self._closed = True
                self._release()

    def _release(self) -> None:
        # After the GPU has failed, so do the releases; the first error has been reported already.
        with suppress(BackendError) if self._broken else nullcontext(), ExitStack() as closing:
            closing.callback(self._plans.release)
            with self._plans.device.current("RELAXED"), ExitStack() as releases:
                releases.callback(self._made.close)
                releases.callback(self._drop_runs)
                releases.callback(self._timeline.settle)

    def __del__(self) -> None:
        """Release the memory of a backend that was dropped without closing it."""
        if not sys.is_finalizing():
            with suppress(Exception):  # its creation may have failed
                self.close()

    def run_graph(self, name: str, inputs: dict[str, npt.NDArray[Any]]) -> Any:
        """Run one network on a batch, in parts that its plan takes."""

        def run_part(*values: npt.NDArray[Any]) -> npt.NDArray[Any]:
            run = self._run((name,), len(values[0]))
            run.enqueue(self._timeline.own, dict(zip(inputs, values, strict=True)))
            return run.result().copy()

        with self._working():
            return in_parts(self._plans.networks[name].max_batch, run_part, *inputs.values())

    def translate(
        self,
        images: Pixels,
        styles: Styles,
        *,
        max_batch: int,
        see: Callable[[Codes], object] = lambda codes: None,
    ) -> Pixels:
        """Return RGB [N * K, height, width, 3]: one launch for each part of the images.

        Its codes stay on the GPU, so nobody sees them.
        """
        self._check_usable()
        images_at_once = self._images_at_once(styles, max_batch)
        if not images_at_once:
            return super().translate(images, styles, max_batch=self._largest(max_batch), see=see)

        def translate_part(part: Pixels) -> Pixels:
            run = self._run(TRANSLATION, len(part), len(styles))
            run.enqueue(self._timeline.own, {"image": part}, styles)
            return run.result().copy()

        with self._working():
            return in_parts(images_at_once, translate_part, images)

    def translate_on_gpu(self, request: GpuRequest) -> Any:
        """Translate pictures in GPU memory, launching in the caller's stream if there is one."""
        with self._working():
            given = None if request.stream is None else self._arrays.stream(request.stream)
            stream = self._timeline.own if given is None else given
            try:
                pictures = self._arrays.take(
                    request.images,
                    request.out,
                    manifest=self._plans.manifest,
                    styles=len(request.styles) if request.has_style_axis else None,
                    stream=int(stream),
                    shared=given is not None,
                )
                self._enqueue_on_gpu(pictures, request, stream)
                if given is None:
                    self._plans.device.call("cuStreamSynchronize", stream)
            except BaseException:
                self._timeline.settle(stream)
                raise
        return pictures.result

    def _enqueue_on_gpu(self, pictures: GpuPictures, request: GpuRequest, stream: Any) -> None:
        networks, styles = self._plans.networks, request.styles
        image_bytes = int(np.prod(networks["encoder"].inputs[0].shape))
        picture_bytes = int(np.prod(networks["generator"].output.shape))
        images_at_once = self._images_at_once(styles, request.max_batch)
        largest = self._largest(request.max_batch)

        # Encode. Where all styles of an image fit into one launch, so are they generated.
        codes = []
        for at in range(0, pictures.count, images_at_once or largest):
            count = min(images_at_once or largest, pictures.count - at)
            inputs = {"image": pictures.source + at * image_bytes}
            if images_at_once:
                run = self._run(TRANSLATION, count, len(styles))
                target = pictures.target + at * len(styles) * picture_bytes
                run.enqueue(stream, inputs, styles, target=target, uses=pictures.views)
            else:
                run = self._run(("encoder",), count)
                run.enqueue(stream, inputs, uses=pictures.views)
                codes.append(run.result().copy())

        # Otherwise generate in parts, of codes on the host.
        if codes:
            mixed = styles.mixed_into(np.concatenate(codes))
            for at in range(0, len(mixed[0]), largest):
                parts = [values[at : at + largest] for values in mixed]
                run = self._run(("generator",), len(parts[0]))
                target = pictures.target + at * picture_bytes
                run.enqueue(
                    stream,
                    dict(zip(("codes", "reference", "weights"), parts, strict=True)),
                    target=target,
                    uses=pictures.views,
                )

    def _images_at_once(self, styles: Styles, max_batch: int) -> int:
        return min(self._plans.images_at_once(len(styles)), max_batch // len(styles))

    def _largest(self, max_batch: int) -> int:
        return min(max_batch, *(self._plans.networks[name].max_batch for name in TRANSLATION))

    def _run(self, networks: tuple[str, ...], rows: int, styles: int = 1) -> CapturedRun:
        """Return the captured run for a size; the one unused for longest makes room.

        Raises:
            BackendError: It cannot be prepared.
        """
        kept = self._runs[networks]
        if (rows, styles) in kept:
            kept.move_to_end((rows, styles))
            return kept[rows, styles]
        while len(kept) >= SIZES_KEPT:
            kept.popitem(last=False)[1].close()
        try:
            run = CapturedRun(self._timeline, networks, rows, styles)
        except OutOfMemory:
            if not any(self._runs.values()):
                raise
            self._drop_runs()
            run = CapturedRun(self._timeline, networks, rows, styles)
        kept[rows, styles] = run
        return run

    def _drop_runs(self) -> None:
        """Release all captured runs, even if one release fails."""
        with ExitStack() as releases:
            for kept in self._runs.values():
                for run in kept.values():
                    releases.callback(run.close)
                kept.clear()

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Make the context current. After an error nothing goes on in our buffers."""
        self._check_usable()
        with calling(), self._plans.device.current():
            check_not_ending()
            try:
                yield
            except BaseException as error:
                self._timeline.settle()
                # Work that was enqueued has failed, and the contents of its buffers are undefined.
                if isinstance(error, BackendError) and not isinstance(error, (Refused, OutOfMemory)):
                    self._broken = str(error)
                raise

    def _check_usable(self) -> None:
        if self._closed:
            raise BackendError("this TensorRT backend is closed; open the engine again")
        if self._broken:
            raise BackendError(
                f"the GPU failed before ({self._broken}), and results after that cannot be trusted; "
                "close this translator and open the engine again, in a new process if it fails once more"
            )
