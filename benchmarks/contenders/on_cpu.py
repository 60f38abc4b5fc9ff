"""The contenders on the CPU."""

from functools import partial

from benchmarks.contenders.entry import Entry
from benchmarks.contenders.openvino import OpenVino
from benchmarks.contenders.pytorch import open_compiled, open_original, open_original_bf16, open_ours
from benchmarks.contenders.translator import BareRequests, BareSessions, psp_rt_entry

_entry = partial(Entry, device="cpu", precision="fp32")

ON_CPU = (
    psp_rt_entry(name="psp_rt-cpu", what="psp_rt on ONNX Runtime, CPU", device="cpu", backend="onnxruntime"),
    _entry(
        name="sessions-cpu",
        what="the same ONNX Runtime sessions without psp_rt",
        open=BareSessions.open,
    ),
    psp_rt_entry(name="psp_rt-openvino", what="psp_rt on OpenVINO, CPU", device="cpu", backend="openvino"),
    _entry(
        name="sessions-openvino",
        what="the same OpenVINO requests without psp_rt",
        open=BareRequests.open,
    ),
    psp_rt_entry(
        name="psp_rt-openvino-bf16",
        what="psp_rt on OpenVINO, CPU, encoder's heads and generator in BF16",
        device="cpu",
        backend="openvino",
        precision="bf16",
    ),
    _entry(
        name="openvino-bf16",
        what="OpenVINO on the engine's graphs, all in BF16",
        precision="bf16",
        open=partial(OpenVino.open, precision="bf16"),
    ),
    _entry(
        name="pytorch-original",
        what="PyTorch eager, grouped convolutions (original formulation)",
        open=open_original,
        in_pytorch=True,
    ),
    _entry(
        name="pytorch-original-bf16",
        what="the same under BF16 autocast",
        precision="bf16",
        open=open_original_bf16,
        in_pytorch=True,
    ),
    _entry(name="pytorch", what="PyTorch eager, our networks", open=open_ours, in_pytorch=True),
    _entry(
        name="pytorch-compiled",
        what="torch.compile, our networks",
        open=open_compiled,
        by_default=False,  # compiles for minutes
        in_pytorch=True,
    ),
    _entry(
        name="openvino",
        what="OpenVINO on the engine's graphs",
        open=OpenVino.open,
        by_default=False,  # another copy of all weights, for what sessions-openvino shows too
    ),
)
