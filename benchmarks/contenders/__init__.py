"""What is compared. Each contender is one way to run the same model on the same inputs.

A call returns when its result is ready, in the host's memory. N is the batch, L the number of
styles, D the style dimension. Another contender is one more class and one more line of `ENTRIES`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from benchmarks.contenders.openvino import OpenVino
from benchmarks.contenders.pytorch import open_compiled, open_original, open_original_bf16, open_ours
from benchmarks.contenders.runtime import BareRequests, BareSessions, PspRt
from benchmarks.workload import Workload
from psp_rt.images import Pixels
from psp_rt.style import Codes


class Contender(Protocol):
    """One way to run a model."""

    def encode(self, images: Pixels) -> Codes:
        """Return codes [N, L, D] of images [N, H, W, C]."""

    def generate(self, codes: Codes) -> Pixels:
        """Return RGB [N, H, W, 3] of codes [N, L, D]."""

    def translate(self, pictures: Sequence[Path]) -> Sequence[Any]:
        """Return N pictures, arrays or PIL images, of picture files: all that a user waits for."""

    def close(self) -> None:
        """Let go of the model's memory."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A contender that may or may not run here."""

    name: str
    what: str
    device: str
    precision: str
    open: Callable[[Workload], Contender]  # raises Unavailable where it cannot run
    by_default: bool = True


ENTRIES = (
    Entry(
        name="psp_rt-cpu", what="psp_rt on ONNX Runtime, CPU", device="cpu", precision="fp32", open=PspRt.open
    ),
    Entry(
        name="sessions-cpu",
        what="the same ONNX Runtime sessions without psp_rt",
        device="cpu",
        precision="fp32",
        open=BareSessions.open,
    ),
    Entry(
        name="psp_rt-openvino",
        what="psp_rt on OpenVINO, CPU",
        device="cpu",
        precision="fp32",
        open=partial(PspRt.open, backend="openvino"),
    ),
    Entry(
        name="sessions-openvino",
        what="the same OpenVINO requests without psp_rt",
        device="cpu",
        precision="fp32",
        open=BareRequests.open,
    ),
    Entry(
        name="psp_rt-openvino-bf16",
        what="psp_rt on OpenVINO, CPU, generator in BF16",
        device="cpu",
        precision="bf16",
        open=partial(PspRt.open, backend="openvino", precision="bf16"),
    ),
    Entry(
        name="openvino-bf16",
        what="OpenVINO on the engine's graphs, all in BF16",
        device="cpu",
        precision="bf16",
        open=partial(OpenVino.open, precision="bf16"),
    ),
    Entry(
        name="pytorch-original",
        what="PyTorch eager, grouped convolutions (original formulation)",
        device="cpu",
        precision="fp32",
        open=open_original,
    ),
    Entry(
        name="pytorch-original-bf16",
        what="the same under BF16 autocast",
        device="cpu",
        precision="bf16",
        open=open_original_bf16,
    ),
    Entry(name="pytorch", what="PyTorch eager, our networks", device="cpu", precision="fp32", open=open_ours),
    Entry(
        name="pytorch-compiled",
        what="torch.compile, our networks",
        device="cpu",
        precision="fp32",
        open=open_compiled,
        by_default=False,  # compiles for minutes
    ),
    Entry(
        name="openvino",
        what="OpenVINO on the engine's graphs",
        device="cpu",
        precision="fp32",
        open=OpenVino.open,
        by_default=False,  # another copy of all weights, for what sessions-openvino shows too
    ),
)
