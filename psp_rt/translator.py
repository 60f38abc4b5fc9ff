"""Run an engine file: pictures in, pictures out."""

from __future__ import annotations

import copy
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from .backends import Backend, open_backend
from .batching import StyledBatches
from .cuda.foreign_arrays import is_device_array
from .engine.manifest import InputSpec, Manifest
from .engine.reader import EngineFile
from .errors import InputError, PspError
from .hardware.choose import Machine, choose
from .hardware.probe import check_threads
from .images import COLORS, Pixels, read_pictures, to_array
from .streaming import AtWork, check_frames, finished, in_order
from .style import Codes, StyleMix, check_seed

log = logging.getLogger("psp_rt")


class Translator:
    """A model ready to run.

    Example:
        >>> face = Translator("sketch.engine").run("drawing.png")
        >>> face.size
        (128, 128)

    Calls from several threads take turns; a :meth:`clone` runs beside this one. Results belong to the caller.
    N is the batch, K the number of styles, L ``num_styles`` and D ``style_dim`` of the manifest.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        backend: str = "auto",
        precision: str = "auto",
        color: str = "bgr",
        threads: int | None = None,
        max_batch: int = 4,
        onnx_cuda_graphs: bool = False,
    ) -> None:
        """Load an engine.

        Args:
            path: The engine file.
            device: "auto" takes the best that there is; "cpu", "cuda" and "cuda:N" that one or an error.
            backend: "auto" takes the fastest one that there is; "tensorrt" (a plan that was built into the
                file for this machine), "onnxruntime" and "openvino" that one or an error.
            precision: "auto" is FP32, which the file was checked for, or what a TensorRT plan was built in;
                "fp32" and "fp16" are that or an error. "bf16" computes the generator and the encoder's
                heads in BF16, which is faster and less exact; it needs OpenVINO and a processor with BF16.
            color: The channel order of NumPy arrays, in and out: "bgr", as OpenCV has it, or "rgb".
            threads: On the CPU; by default one for each physical core.
            max_batch: A larger batch goes through the graphs in parts of this size, which bounds the
                memory: the generator's activations are its bulk, and grow with the batch.
            onnx_cuda_graphs: Let ONNX Runtime on CUDA record and replay CUDA graphs, which saves launches.
                Clones then take turns; and during the first run of a batch size, which records it, other
                threads cannot allocate on the GPU. Not yet run on a GPU, so off unless asked for.

        Raises:
            FormatError: The file is not a usable engine.
            DeviceError: The device, backend or precision cannot be had.
            BackendError: TensorRT refuses a plan, or the GPU has too little memory.
        """
        if color not in COLORS:
            raise InputError(f"color is {color!r}; expected 'bgr' (OpenCV) or 'rgb'")
        check_threads(threads)
        self._color, self._turn = color, threading.Lock()
        with EngineFile.open(path, needs_graphs=False) as engine:
            self.manifest: Manifest = engine.manifest
            self._batches = StyledBatches(manifest=engine.manifest, max_batch=max_batch)
            choice = choose(Machine(), device=device, backend=backend, precision=precision, engine=engine)
            if not choice.plan:
                engine.check_has_graphs(choice.reason)
            self._backend: Backend | None = open_backend(
                engine, choice, threads=threads, onnx_cuda_graphs=onnx_cuda_graphs
            )
        self.device: str = self._backend.device
        self.backend: str = self._backend.name
        self.precision: str = self._backend.precision
        self.runs_on: str = f"{self.device}, {self._backend.description} ({choice.reason})"
        log.info("%s runs on %s", path, self.runs_on)

    def __repr__(self) -> str:
        return f"<Translator of {self.manifest.task} on {self.runs_on}>"

    def run(self, images: Any, *, style: StyleMix | None = None, out: Any = None, stream: Any = None) -> Any:
        """Translate one picture or a batch.

        Pictures on a GPU - arrays of PyTorch, CuPy, pycuda and others with DLPack or
        ``__cuda_array_interface__`` - are taken by TensorRT and by ONNX Runtime on CUDA, and give a
        :class:`DeviceArray`, or ``out``. No picture crosses to the host; TensorRT's recorded graphs have
        buffers of their own, to and from which the pictures are copied on the GPU. Such pictures are
        RGB (open with ``color="rgb"``), uint8, without gaps, and have exactly the size and channels of the
        model's input; label ids are not checked. This has not run on a GPU yet.

        Args:
            images: A path, a PIL image, uint8 [H, W, 3], [H, W] or [N, H, W, 3], or a list of such; all
                forms are in :mod:`psp_rt.images.forms`. A picture of another size or shape is resized
                to the model's input; faces should be cut and aligned as in training.
            style: Mixes other styles in. With K references each picture gives K results: it is encoded once,
                seeds are mapped once, and all are generated as one batch or in parts of ``max_batch``.
            out: An array for the results, where the input is an array; on the GPU, where that is.
            stream: For pictures on a GPU: the CUDA stream in which they are made and results are used, as
                an int or an object of PyTorch, CuPy, pycuda or cuda.core; it must live as long as these.
                With TensorRT, run() then returns at once, and later work in that stream finds the results;
                it waits only for a new size, for seeds, for another style than in the call before, or
                between parts of more styles than ``max_batch``. ONNX Runtime waits for the stream, and
                returns when it is done. Without a stream, both wait for the array's own one (or the
                default stream), and return when results are there.

        Returns:
            The results in the form of the input: see :mod:`psp_rt.images.forms`.

        Raises:
            InputError: A picture cannot be read, or is not what the model takes.
        """
        if is_device_array(images):
            return self._run_on_gpu(images, style, out, stream)
        if stream is not None:
            raise InputError("stream= goes with pictures on a GPU; leave it out for all others")
        pictures = read_pictures(images, self._input_spec("run"), color=self._color)
        with self._taking_turns() as backend:
            results = self._batches.translate(backend, pictures.pixels, style)
        return pictures.restore(results, out)

    def encode(self, images: Any) -> Codes:
        """Return the codes of one picture [L, D], or of a batch or list [N, L, D]."""
        pictures = read_pictures(images, self._input_spec("encode"), color=self._color)
        with self._taking_turns() as backend:
            codes = self._batches.encode(backend, pictures.pixels)
        return codes[0] if pictures.container == "one" else codes

    def generate(
        self, codes: npt.ArrayLike, style: StyleMix | None = None, *, out: Pixels | None = None
    ) -> Pixels:
        """Return the pictures of codes as an array.

        Args:
            codes: [L, D] or [N, L, D].
            style: As for :meth:`run`.
            out: An array for the results.

        Returns:
            uint8 [H, W, 3] or [N, H, W, 3]; with K styles [K, H, W, 3] or [N, K, H, W, 3]; in the channel
            order that `color` says.
        """
        with self._taking_turns() as backend:
            results = self._batches.generate(backend, codes, style)
        return to_array(results, self._color, out)

    def sample(self, seed: int) -> Codes:
        """Return the code [L, D] of a random style; the same seed always gives the same."""
        with self._taking_turns() as backend:
            style = self._batches.map_seeds(backend, [check_seed(seed)])
        return np.repeat(style, self.manifest.num_styles, axis=0)

    def stream(
        self, frames: Iterable[Any], *, in_flight: int = 2, style: StyleMix | None = None
    ) -> Iterator[Any]:
        """Yield the result of each frame, in order.

        Args:
            frames: Pictures or batches, for example from a camera; taken as they are needed.
            in_flight: Frames at work at once. 1 adds no delay: right for a camera. 2 reads and resizes
                the next frame during the work on this one, and TensorRT copies it to the GPU, and the
                result before it from there, meanwhile: right for a file. More only adds delay.
            style: As for :meth:`run`; its seeds are mapped once for the whole stream.

        A frame's error is raised in its place, after the results before it.
        """
        self._input_spec("stream")
        check_frames(frames)
        if not isinstance(in_flight, int) or in_flight < 1:
            raise InputError(f"in_flight is {in_flight!r}; expected 1 or more")
        with self._taking_turns() as backend:
            settled = self._batches.settled(backend, style)
        begin = partial(self._do if in_flight == 1 else self._begin, style=settled)
        # What is on a GPU waits for the stream that is current in its maker's thread, which is the caller's.
        return in_order(begin, frames, in_flight=in_flight, at_once=is_device_array)

    def clone(self) -> Translator:
        """Return a translator for another thread, on the same weights; closing one leaves the other."""
        with self._taking_turns() as backend:
            other = copy.copy(self)
            other._turn = threading.Lock()
            other._backend = backend.clone()
        return other

    def close(self) -> None:
        """Let go of the model's memory, after a call at work has ended. Closing twice is allowed."""
        with self._turn:
            if self._backend is not None:
                self._backend.close()
            self._backend = None

    def __enter__(self) -> Translator:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextmanager
    def _taking_turns(self) -> Iterator[Backend]:
        with self._turn:
            if self._backend is None:
                raise PspError("this translator is closed; open the engine again")
            yield self._backend

    def _input_spec(self, call: str) -> InputSpec:
        if self.manifest.input is None:
            raise InputError(
                f"{call}() needs an encoder, and this engine has none; sample() and generate() still work"
            )
        return self.manifest.input

    def _run_on_gpu(self, images: Any, style: StyleMix | None, out: Any, stream: Any) -> Any:
        self._input_spec("run")
        if self._color != "rgb":
            raise InputError(
                "pictures on a GPU are RGB, the input and the result, and this translator was opened with "
                f"color={self._color!r}, whose order is not swapped there; open it with color='rgb'"
            )
        with self._taking_turns() as backend:
            return self._batches.translate_on_gpu(backend, images, style, out=out, stream=stream)

    def _do(self, frame: Any, style: StyleMix | None) -> AtWork[Any]:
        """Do the work on a frame of a stream."""
        return finished(self.run(frame, style=style))

    def _begin(self, frame: Any, style: StyleMix | None) -> AtWork[Any]:
        """Begin the work on a frame of a stream beside others; where that cannot be, do it."""
        if is_device_array(frame):
            return self._do(frame, style)
        pictures = read_pictures(frame, self._input_spec("stream"), color=self._color)
        with self._taking_turns() as backend:
            begun = self._batches.begin(backend, pictures.pixels, style)
            if begun is None:
                return finished(pictures.restore(self._batches.translate(backend, pictures.pixels, style)))
        return AtWork(finish=lambda: pictures.restore(begun.finish()), abandon=begun.abandon)
