"""What a contender is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.measure.workload import Workload
from psp_rt.images import Pixels
from psp_rt.style import Codes


class Contender(Protocol):
    """One way to run a model. A call returns when its result is ready, in the host's memory."""

    def encode(self, images: Pixels) -> Codes:
        """Return codes [N, L, D] of images [N, H, W, C]."""

    def with_style(self, codes: Codes, seed: int, first_row: int) -> Codes:
        """Map a seed to a style and return codes [N, L, D] with it from one row on."""

    def generate(self, codes: Codes) -> Pixels:
        """Return RGB [N, H, W, 3] of codes [N, L, D]."""

    def translate(self, pictures: Sequence[Path]) -> Sequence[Any]:
        """Return N pictures, arrays or PIL images, of picture files: all that a user waits for."""

    def close(self) -> None:
        """Let go of the model's memory."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A contender that may or may not run here.

    Args:
        open: Raises Unavailable where it cannot run.
        translator: How a `Translator` is opened, where the contender is one.
        in_pytorch: Whether it is PyTorch.
    """

    name: str
    what: str
    device: str  # "cpu" or "cuda"
    precision: str
    open: Callable[[Workload], Contender]
    by_default: bool = True
    translator: Mapping[str, str] = field(default_factory=dict)
    in_pytorch: bool = False
