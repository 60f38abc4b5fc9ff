"""The graphs of an engine, and the inputs and outputs that each must have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import FormatError
from .manifest import Manifest

GRAPHS = ("encoder", "mapping", "generator")
PRECISIONS = ("fp32", "fp16")  # of the graphs that a file may hold; the FP16 ones are for TensorRT


def graph_name(graph: str, precision: str) -> str:
    """Return the name of a graph in a precision: "generator", "generator.fp16"."""
    return graph if precision == "fp32" else f"{graph}.{precision}"


def weights_member(name: str) -> str:
    """Return the member that holds a graph's weights; the graphs of all precisions share it."""
    return f"{name.partition('.')[0]}.weights"


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output of a graph: its name, type, and shape after the batch."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [N, {', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, kw_only=True)
class FoundPort:
    """What a graph has: the whole shape, its batch too; None is a size that is left open."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sizes = ("N" if size is None else str(size) for size in self.shape)
        return f"{self.name} {self.dtype} [{', '.join(sizes)}]"

    def fits(self, expected: Port) -> bool:
        """Return whether it can be used as the expected one."""
        if (self.name, self.dtype) != (expected.name, expected.dtype):
            return False
        batch, *rest = self.shape or (1,)
        return (
            batch is None  # or it was frozen by the export
            and len(rest) == len(expected.shape)
            and all(size in (None, wanted) for size, wanted in zip(rest, expected.shape, strict=True))
        )


def graph_ports(manifest: Manifest, name: str) -> tuple[list[Port], list[Port]]:
    """Return the inputs and outputs that a graph must have."""
    code = Port(name="codes", dtype="float32", shape=(manifest.num_styles, manifest.style_dim))
    if name == "mapping":
        style = (manifest.style_dim,)
        return [Port(name="z", dtype="float32", shape=style)], [Port(name="w", dtype="float32", shape=style)]
    if name == "encoder":
        if manifest.input is None:
            raise FormatError(
                "the file has an encoder, but its manifest has no input; export the engine again"
            )
        size = (manifest.input.height, manifest.input.width, manifest.input.channels)
        return [Port(name="image", dtype="uint8", shape=size)], [code]
    reference = Port(name="reference", dtype="float32", shape=code.shape)
    weights = Port(name="weights", dtype="float32", shape=code.shape[:1])
    picture = Port(name="image", dtype="uint8", shape=(manifest.output.height, manifest.output.width, 3))
    return [code, reference, weights], [picture]


def check_ports(what: str, kind: str, found: Sequence[FoundPort], expected: Sequence[Port]) -> None:
    """Refuse a graph whose inputs or outputs are not the manifest's.

    Args:
        what: The graph, for the message.
        kind: "input" or "output".

    Raises:
        FormatError: They are not.
    """
    if len(found) == len(expected) and all(map(FoundPort.fits, found, expected)):
        return
    raise FormatError(
        f"{what} has the {kind} {'; '.join(map(str, found))}; the manifest expects "
        f"{'; '.join(map(str, expected))}; export the engine again"
    )
