"""All contenders, on the CPU and on the first NVIDIA GPU.

Those on a GPU take part by default if the driver finds one. If they are named with ``--contenders`` they are
tried anyway, and the result states what is missing. Another contender is one more class and one more entry.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from benchmarks.contenders.contender import Contender, Entry
from benchmarks.contenders.pytorch import open_pytorch
from benchmarks.contenders.translator import BareRequests, BareSessions, OpenVino, PspRt

if TYPE_CHECKING:
    from benchmarks.workloads.workload import Workload

GPU = "cuda:0"


def _psp_rt(name: str, what: str, *, device: str, backend: str, precision: str = "fp32") -> Entry:
    settings = {"device": device, "backend": backend, "precision": precision}
    return Entry(
        name=name,
        what=what,
        device=device,
        precision=precision,
        open=partial(PspRt.open, device=device, backend=backend, precision=precision),
        translator=settings,
    )


def _pytorch(
    name: str,
    what: str,
    *,
    device: str = "cpu",
    autocast: torch.dtype | None = None,
    original: bool = False,
    compiled: bool = False,
) -> Entry:
    precisions = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

    def open_it(workload: Workload) -> Contender:
        return open_pytorch(workload, original=original, compiled=compiled, autocast=autocast, device=device)

    return Entry(
        name=name,
        what=what,
        device=device.partition(":")[0],
        precision=precisions[autocast],
        open=open_it,
        by_default=not compiled,  # compiling takes minutes
        in_pytorch=True,
    )


ENTRIES = (
    _psp_rt("psp_rt-cpu", "psp_rt on ONNX Runtime, CPU", device="cpu", backend="onnxruntime"),
    Entry(
        name="sessions-cpu",
        what="the same ONNX Runtime sessions without psp_rt",
        device="cpu",
        precision="fp32",
        open=BareSessions.open,
    ),
    _psp_rt("psp_rt-openvino", "psp_rt on OpenVINO, CPU", device="cpu", backend="openvino"),
    Entry(
        name="sessions-openvino",
        what="the same OpenVINO requests without psp_rt",
        device="cpu",
        precision="fp32",
        open=BareRequests.open,
    ),
    _psp_rt(
        "psp_rt-openvino-bf16",
        "psp_rt on OpenVINO, CPU, encoder's heads and generator in BF16",
        device="cpu",
        backend="openvino",
        precision="bf16",
    ),
    Entry(
        name="openvino-bf16",
        what="OpenVINO on the engine's graphs, all in BF16",
        device="cpu",
        precision="bf16",
        open=partial(OpenVino.open, precision="bf16"),
    ),
    _pytorch("pytorch-original", "PyTorch eager, grouped convolutions (original formulation)", original=True),
    _pytorch("pytorch-original-bf16", "the same under BF16 autocast", original=True, autocast=torch.bfloat16),
    _pytorch("pytorch", "PyTorch eager, our networks"),
    _pytorch("pytorch-compiled", "torch.compile, our networks", compiled=True),
    Entry(
        name="openvino",
        what="OpenVINO on the engine's graphs",
        device="cpu",
        precision="fp32",
        open=OpenVino.open,
        by_default=False,  # another copy of all weights, for what sessions-openvino shows too
    ),
    _psp_rt(
        "psp_rt-tensorrt-fp16",
        "psp_rt on TensorRT, FP16",
        device="cuda",
        backend="tensorrt",
        precision="fp16",
    ),
    _psp_rt("psp_rt-tensorrt", "psp_rt on TensorRT, FP32", device="cuda", backend="tensorrt"),
    _psp_rt("psp_rt-cuda", "psp_rt on ONNX Runtime, CUDA", device="cuda", backend="onnxruntime"),
    _pytorch(
        "pytorch-original-cuda",
        "PyTorch eager on CUDA, grouped convolutions (original formulation)",
        device=GPU,
        original=True,
    ),
    _pytorch("pytorch-cuda", "PyTorch eager on CUDA, our networks", device=GPU),
    _pytorch("pytorch-cuda-fp16", "the same under FP16 autocast", device=GPU, autocast=torch.float16),
    _pytorch(
        "pytorch-compiled-cuda-fp16",
        "torch.compile on CUDA under FP16 autocast, our networks",
        device=GPU,
        compiled=True,
        autocast=torch.float16,
    ),
)
