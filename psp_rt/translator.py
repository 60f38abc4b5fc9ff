"""Run an engine file: pictures in, pictures out."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
import numpy.typing as npt
from PIL.Image import Image

from .batching import StyledBatches
from .engine.manifest import InputSpec, Manifest
from .errors import BackendError, InputError, PspError
from .hardware.choose import BackendName, Device, Precision
from .hardware.probe import check_threads
from .images import COLORS, Color, Pixels, is_device_array, read_pictures, to_array
from .input_checks import check_codes, check_faces, check_sizes
from .opening import open_engine
from .streaming import check_frames, in_order
from .style import Codes, StyleMix, check_seed
from .truncation import Truncation, strengths
from .turns import Turns

if TYPE_CHECKING:
    from .faces import Finder, PhotoResult, Selection

Own = TypeVar("Own", bound="Translator")  # a translator, or a subclass of it
OnError = Literal["raise", "skip"]
Source = str | os.PathLike[str] | Image

MAX_STREAM_WORKERS = 4  # for a stream on a GPU; each has activations of its own

log = logging.getLogger("psp_rt")


class Translator:
    """A model that is ready to run.

    Example:
        >>> face = Translator("sketch.engine").run("drawing.png")
        >>> face.size
        (128, 128)

    Calls from several threads take turns; a :meth:`clone` runs in parallel. Results belong to the caller. N
    is the batch, K the number of styles, L ``num_styles`` and D ``style_dim`` of the manifest.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: Device = "auto",
        backend: BackendName = "auto",
        precision: Precision = "auto",
        color: Color = "bgr",
        threads: int | None = None,
        max_batch: int = 4,
        verify: bool = False,
    ) -> None:
        """Load an engine.

        Args:
            path: The engine file.
            device: "auto" takes the best available device, and the next best if that one turns out not to
                work; "cpu", "cuda" and "cuda:N" take that device or raise an error.
            backend: "auto" takes the fastest available one; "tensorrt" (a plan that was built into the file
                for this machine), "onnxruntime" and "openvino" take that one or raise an error.
            precision: "auto" is FP32, which the file was checked for, or the precision that a TensorRT plan
                was built in; "fp32" and "fp16" are that or an error. "bf16" computes the generator and the
                encoder's heads in BF16, which is faster and less exact; it needs OpenVINO and a processor
                with BF16.
            color: The channel order of NumPy arrays, in and out: "bgr", as in OpenCV, or "rgb".
            threads: On the CPU; by default one for each physical core.
            max_batch: A larger batch goes through the graphs in parts of this size, which bounds the memory:
                the generator's activations are most of it, and grow with the batch.
            verify: Open and run the file once in a child process first, under limits of memory and time: for
                files from strangers, if not even a crash of a runtime may end this process.

        Raises:
            FormatError: The file is not a usable engine.
            DeviceError: The device, backend or precision is not available.
            BackendError: TensorRT refuses a plan, or the GPU has too little memory.
        """
        if color not in COLORS:
            raise InputError(f"color is {color!r}; expected 'bgr' (OpenCV) or 'rgb'")
        check_threads(threads)
        if verify:
            from .verification import verify as verify_in_child  # not for every import of psp_rt

            verify_in_child(path)
        opened = open_engine(path, device=device, backend=backend, precision=precision, threads=threads)
        self.manifest: Manifest = opened.manifest
        self.color: Color = color
        self.device: str = opened.backend.device
        self.backend: str = opened.backend.name
        self.precision: str = opened.backend.precision
        self.runs_on: str = opened.runs_on
        self._usual = opened.usual
        self._batches = StyledBatches(opened.manifest, max_batch, average=opened.average)
        self._turns = Turns(opened.backend)

    def __repr__(self) -> str:
        return f"<Translator of {self.manifest.task} on {self.runs_on}>"

    @overload
    def run(self, images: Source, *, style: None = None, truncation: Truncation | None = None) -> Image: ...

    @overload
    def run(
        self,
        images: Pixels,
        *,
        style: StyleMix | None = None,
        truncation: Truncation | None = None,
        out: Pixels | None = None,
    ) -> Pixels: ...

    @overload
    def run(
        self, images: list[Source], *, style: None = None, truncation: Truncation | None = None
    ) -> list[Image]: ...

    @overload
    def run(
        self,
        images: Any,
        *,
        style: StyleMix | None = None,
        truncation: Truncation | None = None,
        out: Any = None,
        stream: Any = None,
    ) -> Any: ...

    def run(
        self,
        images: Any,
        *,
        style: StyleMix | None = None,
        truncation: Truncation | None = None,
        out: Any = None,
        stream: Any = None,
    ) -> Any:
        """Translate one picture or a batch.

        Pictures in GPU memory - arrays of PyTorch, CuPy, pycuda and others with DLPack or
        ``__cuda_array_interface__`` - are taken by TensorRT and by ONNX Runtime on CUDA. The result is a new
        array of PyTorch or CuPy, as the input is; other libraries pass ``out``. No picture crosses to the
        host. Such pictures are RGB (open with ``color="rgb"``), uint8, contiguous, and have exactly the size
        and channels of the model's input; label ids are not checked.

        Args:
            images: A path, a PIL image, uint8 [H, W, 3], [H, W] or [N, H, W, 3], or a list of such; all forms
                are listed in :mod:`psp_rt.images`. A picture of another size or shape is resized to the
                model's input; faces should be cropped and aligned as in training.
            style: Mixes other styles in. With K references each picture gives K results: it is encoded once,
                seeds are mapped once, and all are generated as one batch or in parts of ``max_batch``.
            truncation: Moves the codes, after mixing, towards the average: psi from 1 (unchanged) to 0 (the
                average), such as 0.7, or with the paper's layers, (0.7, "1-8").
            out: An array for the results, if the input is an array; in GPU memory, if the input is.
            stream: For pictures in GPU memory: the CUDA stream in which they are made and results are used,
                as an int or an object of PyTorch, CuPy, pycuda or cuda.core. TensorRT then launches in that
                stream and run() returns at once. It waits only for a new size, for seeds, for another style
                than in the call before, or if the styles are more than ``max_batch``. ONNX Runtime waits for
                the stream, and returns when the results are there. Without a stream, both wait for the
                array's own one (or the default stream), and return when the results are there.

        Returns:
            The results in the form of the input, as :mod:`psp_rt.images` lists them.

        Raises:
            InputError: A picture cannot be read, or is not what the model takes.

        Warns:
            InputWarning: A picture is squeezed, much enlarged, or unlike those that the model was made for.
        """
        if is_device_array(images):
            return self._run_on_gpu(images, style, truncation, out, stream)
        if stream is not None:
            raise InputError("stream= goes with pictures in GPU memory; omit it for all others")
        pictures = read_pictures(images, self._input_spec("run"), color=self.color)
        check_sizes(pictures.sizes, self.manifest)
        seen: list[Codes] = []
        with self._turns.take() as backend:
            results = self._batches.translate(backend, pictures.pixels, style, truncation, seen.append)
        if seen:
            check_codes(np.concatenate(seen), self.manifest, self._usual, from_bgr=pictures.from_bgr)
        return pictures.restore(results, out)

    def run_faces(
        self,
        photo: Any,
        *,
        faces: Selection = "largest",
        paste: bool = False,
        match_color: bool = False,
        style: StyleMix | None = None,
        truncation: Truncation | None = None,
        finder: Finder | None = None,
    ) -> PhotoResult:
        """Find the faces of a photo, align them as FFHQ does, and translate them.

        Example:
            >>> result = translator.run_faces("selfie.jpg", paste=True)
            >>> result.report
            '1 face, cut from 812x812 at (1404, 620), turned 12 degrees'
            >>> result.pasted[0].save("changed.jpg")

        Args:
            photo: A path, bytes, an open file, a PIL image, or uint8 [H, W, 3] in the order of ``color``.
            faces: "largest" or "all".
            paste: Also put the results back into the photo, at its own resolution.
            match_color: Shift the pasted colors so that they agree with the photo's at the edge.
            style: As for :meth:`run`.
            truncation: As for :meth:`run`.
            finder: Another face detector; see :class:`psp_rt.faces.Finder`.

        Returns:
            The faces, their results and the report. An aligned photo is translated as it is.

        Raises:
            InputError: The photo shows no face, or cannot be read.
        """
        spec = self._input_spec("run_faces")
        if spec.kind != "rgb":
            raise InputError(
                f"run_faces() is for models of photos, and this one takes {spec.kind}; use run()"
            )
        if isinstance(photo, np.ndarray) and self.color == "bgr" and photo.ndim == 3:
            photo = np.ascontiguousarray(photo[:, :, [2, 1, 0, *range(3, photo.shape[2])]])
        from .faces import translate_faces  # not for every import of psp_rt

        result = translate_faces(
            lambda pictures: self.run(pictures, style=style, truncation=truncation),
            photo,
            size=max(spec.height, spec.width),
            select=faces,
            paste=paste,
            match_color=match_color,
            finder=finder,
        )
        check_faces((face.face.side for face in result.faces if not face.whole), self.manifest)
        return result

    def encode(self, images: Any) -> Codes:
        """Return the codes of one picture [L, D], or of a batch or list [N, L, D]."""
        pictures = read_pictures(images, self._input_spec("encode"), color=self.color)
        check_sizes(pictures.sizes, self.manifest)
        with self._turns.take() as backend:
            codes = self._batches.encode(backend, pictures.pixels)
        check_codes(codes, self.manifest, self._usual, from_bgr=pictures.from_bgr)
        return codes[0] if pictures.container == "one" else codes

    def generate(
        self,
        codes: npt.ArrayLike,
        style: StyleMix | None = None,
        *,
        truncation: Truncation | None = None,
        out: Pixels | None = None,
    ) -> Pixels:
        """Return the pictures of codes as an array.

        Args:
            codes: [L, D] or [N, L, D].
            style: As for :meth:`run`.
            truncation: As for :meth:`run`.
            out: An array for the results.

        Returns:
            uint8 [H, W, 3] or [N, H, W, 3]; with K styles [K, H, W, 3] or [N, K, H, W, 3]; in the channel
            order that `color` says.
        """
        with self._turns.take() as backend:
            results = self._batches.generate(backend, codes, style, truncation)
        return to_array(results, self.color, out)

    def sample(self, seed: int | Sequence[int], *, truncation: Truncation | None = None) -> Codes:
        """Return the code [L, D] of a random style, or [N, L, D] for several seeds.

        The same seed always gives the same code. With truncation, as for :meth:`run`, it is nearer to the
        average.
        """
        one = not isinstance(seed, Sequence) and np.ndim(seed) == 0
        seeds = [check_seed(value) for value in ([seed] if one else seed)]  # type: ignore[union-attr]
        if not seeds:
            raise InputError("there are no seeds; pass at least one, such as sample([1, 2, 3])")
        with self._turns.take() as backend:
            codes = self._batches.sample(backend, seeds, truncation)
        return codes[0] if one else codes

    @property
    def average_code(self) -> Codes:
        """The average style of the mapping network as a code [L, D].

        It is stored in the engine; for engines from before that, the average of 1,024 fixed seeds.
        """
        with self._turns.take() as backend:
            return self._batches.average(backend)

    @overload
    def stream(
        self,
        frames: Iterable[Pixels],
        *,
        in_flight: int = 2,
        style: StyleMix | None = None,
        truncation: Truncation | None = None,
        on_error: OnError = "raise",
    ) -> Iterator[Pixels]: ...

    @overload
    def stream(
        self,
        frames: Iterable[Source],
        *,
        in_flight: int = 2,
        style: None = None,
        truncation: Truncation | None = None,
        on_error: OnError = "raise",
    ) -> Iterator[Image]: ...

    @overload
    def stream(
        self,
        frames: Iterable[Any],
        *,
        in_flight: int = 2,
        style: StyleMix | None = None,
        truncation: Truncation | None = None,
        on_error: OnError = "raise",
    ) -> Iterator[Any]: ...

    def stream(
        self,
        frames: Iterable[Any],
        *,
        in_flight: int = 2,
        style: StyleMix | None = None,
        truncation: Truncation | None = None,
        on_error: OnError = "raise",
    ) -> Iterator[Any]:
        """Yield the result of each frame, in order.

        Args:
            frames: Pictures or batches, for example from a camera; taken as they are needed.
            in_flight: How many frames are at work at once. 1 adds no delay: right for a camera. 2 works on
                the next frame while the consumer has this one, and on a GPU overlaps the copies of one frame
                with the work on the other, on a clone: right for a file. More only adds delay.
            style: As for :meth:`run`; its seeds are mapped once for the whole stream.
            truncation: As for :meth:`run`.
            on_error: "raise" raises a frame's error in its place, after the results before it, and ends the
                stream. "skip" leaves out frames that are no pictures or that the backend fails on, logs
                why, and goes on. An error of ``frames`` itself is always raised.

        Closing the iterator, or dropping it, waits for the frames at work and releases clones and threads.
        """
        self._input_spec("stream")
        check_frames(frames)
        if on_error not in ("raise", "skip"):
            raise InputError(f"on_error is {on_error!r}; expected 'raise' or 'skip'")
        if not isinstance(in_flight, int) or in_flight < 1:
            raise InputError(f"in_flight is {in_flight!r}; expected 1 or more")
        if style is not None:
            with self._turns.take() as backend:
                style = style.with_references(self._batches.styles(backend, style, None).reference)
        if truncation is not None:
            strengths(truncation, self.manifest.num_styles)  # one error now instead of one for each frame
        return self._stream(frames, in_flight, style, truncation, on_error)

    def clone(self: Own) -> Own:
        """Return a translator for another thread, on the same weights; closing one leaves the other."""
        with self._turns.take() as backend:
            other = type(self).__new__(type(self))
            other.__dict__ |= self.__dict__
            other._batches = copy.copy(self._batches)
            other._turns = Turns(backend.clone())
        return other

    def __getstate__(self) -> None:
        """Refuse to be pickled or copied: the model's memory and threads belong to this process.

        Raises:
            PspError: Always.
        """
        raise PspError(
            "a translator cannot be pickled or copied; for another thread use clone(), and in another "
            "process open the engine in each worker"
        )

    def bare(self, name: str) -> Any:
        """Return the runtime's own session of a graph, to measure what psp_rt adds to it.

        Its inputs and outputs are those of `psp_rt.engine.graph_ports`. It ends with this translator.

        Args:
            name: "encoder", "mapping" or "generator".

        Returns:
            An ``onnxruntime.InferenceSession``; or an OpenVINO request, which takes one picture at a time.

        Raises:
            InputError: The backend has no such session.
        """
        with self._turns.take() as backend:
            return backend.bare(name)

    def close(self) -> None:
        """Release the model's memory, after a call in progress has ended. Closing twice is allowed.

        Any thread may close, at any moment. A signal handler that interrupts a call in its own thread does
        not wait for it: that call ends as usual, and then closes. Nor is anything waited for in a process
        that was forked off, as its threads are in the other one. At the end of the process, what is still
        open is closed by itself.
        """
        self._turns.close()

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _input_spec(self, call: str) -> InputSpec:
        if self.manifest.input is None:
            raise InputError(
                f"{call}() needs an encoder, and this engine has none; sample() and generate() still work"
            )
        return self.manifest.input

    def _run_on_gpu(
        self, images: Any, style: StyleMix | None, truncation: Truncation | None, out: Any, stream: Any
    ) -> Any:
        self._input_spec("run")
        if self.color != "rgb":
            raise InputError(
                "pictures in GPU memory are RGB, the input and the result, and this translator was opened "
                f"with color={self.color!r}, whose order is not swapped there; open it with color='rgb'"
            )
        with self._turns.take() as backend:
            return self._batches.translate_on_gpu(backend, images, style, truncation, out=out, stream=stream)

    def _stream(
        self,
        frames: Iterable[Any],
        in_flight: int,
        style: StyleMix | None,
        truncation: Truncation | None,
        on_error: OnError,
    ) -> Iterator[Any]:
        """Work on frames in one thread on the CPU, and in a thread for each frame in flight on a GPU."""
        with ExitStack() as clones:
            translators = [self]
            try:
                while self.device != "cpu" and len(translators) < min(in_flight, MAX_STREAM_WORKERS):
                    translators.append(clones.enter_context(self.clone()))
            except BackendError as error:
                log.warning("the stream has only %d frames at work at once: %s", len(translators), error)
            yield from in_order(
                frames,
                [partial(translator.run, style=style, truncation=truncation) for translator in translators],
                in_flight=in_flight,
                # Such a frame is ordered by the stream that is current in its maker's thread, the caller's.
                at_once=is_device_array,
                skip=_skipped if on_error == "skip" else lambda error: False,
            )


def _skipped(error: Exception) -> bool:
    """Return whether a stream goes on after a frame's error: not if the next frame would have it too."""
    if not isinstance(error, (InputError, BackendError)):
        return False
    log.warning("a frame is left out: %s", error)
    return True
