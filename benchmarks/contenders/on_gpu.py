"""The contenders on the first NVIDIA GPU. None of them has run yet: there was no GPU.

By default they take part where the driver finds a GPU. Named with ``--contenders`` they are tried anyway,
and what is missing is told.
"""

from functools import partial

import torch

from benchmarks.contenders.entry import Entry
from benchmarks.contenders.pytorch_gpu import open_compiled, open_original, open_ours
from benchmarks.contenders.translator import psp_rt_entry

_entry = partial(Entry, device="cuda", in_pytorch=True)

ON_GPU = (
    psp_rt_entry(
        name="psp_rt-tensorrt-fp16",
        what="psp_rt on TensorRT, FP16",
        device="cuda",
        backend="tensorrt",
        precision="fp16",
    ),
    psp_rt_entry(
        name="psp_rt-tensorrt",
        what="psp_rt on TensorRT, FP32",
        device="cuda",
        backend="tensorrt",
    ),
    psp_rt_entry(
        name="psp_rt-cuda",
        what="psp_rt on ONNX Runtime, CUDA",
        device="cuda",
        backend="onnxruntime",
    ),
    _entry(
        name="pytorch-original-cuda",
        what="PyTorch eager on CUDA, grouped convolutions (original formulation)",
        precision="fp32",
        open=open_original,
    ),
    _entry(name="pytorch-cuda", what="PyTorch eager on CUDA, our networks", precision="fp32", open=open_ours),
    _entry(
        name="pytorch-cuda-fp16",
        what="the same under FP16 autocast",
        precision="fp16",
        open=partial(open_ours, autocast=torch.float16),
    ),
    _entry(
        name="pytorch-compiled-cuda-fp16",
        what="torch.compile on CUDA under FP16 autocast, our networks",
        precision="fp16",
        open=open_compiled,
        by_default=False,  # compiles for minutes
    ),
)
