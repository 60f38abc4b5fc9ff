"""An engine: one file holding everything needed to run a model.

It is an ordinary zip whose members are stored, not compressed, so any of them can be taken out
with ``unzip`` and handed to other tools (``trtexec --onnx=generator.onnx``, Netron):

    manifest.json                        what the model is, its parity, and the hash of every member
    encoder.onnx    encoder.weights      image -> codes; absent in a generator-only engine
    mapping.onnx    mapping.weights      z -> w
    generator.onnx  generator.weights    codes -> image
    encoder.fp16.onnx, generator.fp16.onnx   the same in FP16, on the same weights: for TensorRT

    plans/<target>/...                   TensorRT builds, each for one kind of machine (`psp_rt.engine.plans`)

X.onnx keeps its large tensors as ONNX external data in X.weights, which may be absent. Member data
begin at multiples of 64 bytes, so that the weights can be mapped into memory where they lie.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TypedDict

from ..errors import FormatError
from ..files import CHUNK
from .archive import Span, read_layout
from .graph import Weight, WeightsAsInputs, WeightsPointer
from .manifest import Manifest
from .ports import GRAPHS, graph_name, graph_ports, weights_member

MANIFEST = "manifest.json"
MAX_MANIFEST = 1 << 20  # bytes


class _Place(TypedDict):
    weights_name: str
    weights: Span | None
    inputs: dict[str, tuple[int, ...]]
    pixels: int


class EngineFile:
    """An open engine file: its layout and manifest are checked, its members are mapped, not read.

    A member's hash is checked when :meth:`view` first returns it, so that opening a file does not read
    gigabytes that are not needed; :meth:`verify` checks them all.
    """

    def __init__(self, path: Path, data: mmap.mmap, identity: tuple[int, ...]) -> None:
        self.path = path
        self._data = data
        self._identity = identity
        self._verified: set[str] = set()
        self._spans = read_layout(data)
        self.manifest = _read_manifest(data, self._spans)
        _check_members(self.manifest, self._spans)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, needs_graphs: bool = True) -> EngineFile:
        """Open an engine file.

        Args:
            path: The file.
            needs_graphs: Refuse a file whose portable graphs were taken out (``psp-rt build --strip-onnx``).

        Raises:
            FormatError: The file cannot be read, or is not a whole and harmless engine.
        """
        path = Path(path)
        with _opened(path) as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            identity = _identity(os.fstat(file.fileno()))
        try:
            engine = cls(path, data, identity)
        except FormatError as error:
            data.close()
            reason = _checkpoint(path) or str(error)
            raise FormatError(f"{path} is not a usable engine: {reason}") from None
        if needs_graphs:
            engine.check_has_graphs()
        return engine

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the members, the manifest among them."""
        return tuple(self._spans)

    def span(self, name: str) -> Span:
        """Return where a member lies in the file, its hash checked."""
        if name not in self._spans:
            raise FormatError(f"{self.path} has no {name}; it has {', '.join(self._spans)}")
        if name not in self._verified and name != MANIFEST:
            self._check_hash(name)
            self._verified.add(name)
        return self._spans[name]

    def view(self, name: str) -> memoryview:
        """Return a member's bytes as they lie in the mapped file."""
        span = self.span(name)
        return memoryview(self._data)[span.offset : span.offset + span.size]

    def graph(self, name: str) -> bytes:
        """Return a graph that is safe to load; its external data point into this file.

        The location is the file's name after symbolic links are resolved: a runtime must be told to
        look in that file's folder.

        Args:
            name: As `graph_name` gives it: "encoder", "generator.fp16".

        Raises:
            FormatError: The graph uses operators or references that an engine never needs.
        """
        file_name = os.path.basename(os.path.realpath(self.path))
        pointer = WeightsPointer(self._title(name), file_name=file_name, **self._place(name))
        with self.view(f"{name}.onnx") as graph:
            return pointer.rewrite(graph)

    def graph_with_inputs(self, name: str) -> tuple[bytes, dict[str, Weight]]:
        """Return a graph that is safe to load and refers to no file: its weights are inputs.

        Returns:
            The graph, and where the tensor of each additional input lies; `Weight.array` maps it.

        Raises:
            FormatError: As `graph`.
        """
        rewriter = WeightsAsInputs(self._title(name), **self._place(name))
        with self.view(f"{name}.onnx") as graph:
            return rewriter.rewrite(graph), rewriter.taken

    def _title(self, name: str) -> str:
        return f"{self.path}: {name}.onnx"

    def _place(self, name: str) -> _Place:
        """Return where a graph's weights lie, and what bounds its sizes."""
        member, manifest = weights_member(name), self.manifest
        inputs, _ = graph_ports(manifest, name.partition(".")[0])
        pixels = [manifest.output.height * manifest.output.width]
        if manifest.input is not None:
            pixels.append(manifest.input.height * manifest.input.width)
        return {
            "weights_name": member,
            "weights": self.span(member) if member in self._spans else None,
            "inputs": {port.name: (1, *port.shape) for port in inputs},
            "pixels": max(pixels),
        }

    def verify(self) -> None:
        """Check the hash of every member."""
        for name in self._spans:
            self.span(name)

    def check_has_graphs(self, why: str = "") -> None:
        """Raise FormatError if the portable graphs were removed; ``why`` explains why they are needed."""
        if self.manifest.stripped:
            raise FormatError(
                f"{self.path} is not a usable engine: its portable graphs were taken out; use the engine "
                "that it was made from" + (f" (no plan of it is run here: {why})" if why else "")
            )

    def check_unchanged(
        self, *, during: str = "while it was being loaded", mend: str = "open it again"
    ) -> None:
        """Raise FormatError if the file was replaced since it was opened."""
        try:
            identity = _identity(os.stat(self.path))
        except OSError:
            identity = ()
        if identity != self._identity:
            raise FormatError(f"{self.path} was replaced {during}; {mend}")

    def close(self) -> None:
        """Release the file."""
        with suppress(BufferError):  # a view still exists, perhaps in a traceback; the mapping ends with it
            self._data.close()

    def __enter__(self) -> EngineFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_hash(self, name: str) -> None:
        span, digest = self._spans[name], hashlib.sha256()
        for at in range(span.offset, span.offset + span.size, CHUNK):
            digest.update(self._data[at : min(at + CHUNK, span.offset + span.size)])
            if hasattr(
                mmap, "MADV_DONTNEED"
            ):  # otherwise the whole file would count as this process's memory
                self._data.madvise(mmap.MADV_DONTNEED, at // mmap.PAGESIZE * mmap.PAGESIZE, CHUNK)
        if digest.hexdigest() != self.manifest.members[name].sha256:
            raise FormatError(
                f"{self.path}: {name} does not have the hash in the manifest; copy or download it again"
            )


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would block forever
            raise FormatError(f"{path} is not a file; expected NAME.engine")
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise FormatError(f"{path} is empty; copy or download it again")
            yield file
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise FormatError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _read_manifest(data: mmap.mmap, spans: Mapping[str, Span]) -> Manifest:
    if MANIFEST not in spans:
        raise FormatError(f"it has no {MANIFEST}")
    span = spans[MANIFEST]
    if span.size > MAX_MANIFEST:
        raise FormatError(f"its {MANIFEST} has {span.size} bytes; expected at most {MAX_MANIFEST}")
    return Manifest.from_json(data[span.offset : span.offset + span.size])


def _check_members(manifest: Manifest, spans: Mapping[str, Span]) -> None:
    listed, present = set(manifest.members), set(spans) - {MANIFEST}
    if listed != present:
        odd = sorted(listed ^ present)[0]
        raise FormatError(
            f"{odd!r} is "
            + ("listed in the manifest but missing" if odd in listed else "not listed in the manifest")
        )
    for name in sorted(listed):
        if manifest.members[name].size != spans[name].size:
            raise FormatError(
                f"{name!r} has {spans[name].size} bytes; the manifest says {manifest.members[name].size}"
            )
    if manifest.stripped:
        return
    needed = [name for name in GRAPHS if name != "encoder" or manifest.input is not None]
    if manifest.precision == "fp16":
        needed += [graph_name(name, "fp16") for name in needed if name != "mapping"]
    for name in needed:
        if f"{name}.onnx" not in present:
            raise FormatError(f"it has no '{name}.onnx'")


def _checkpoint(path: Path) -> str:
    """Return what to type for a file with a checkpoint's ending; empty for others."""
    if path.suffix.lower() not in (".pt", ".pth", ".ckpt", ".pkl"):
        return ""
    return (
        f"it looks like a checkpoint; convert it in a checkout with: python -m export {path} "
        f"--output {path.with_suffix('.engine').name}"
    )
