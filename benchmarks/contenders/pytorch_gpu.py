"""The networks in PyTorch on the first GPU, timed by CUDA's events. It has not run on a GPU yet.

FP32 means FP32: TensorFloat-32, which PyTorch takes for convolutions by itself, is switched off.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from benchmarks.contenders.pytorch import Networks, PyTorch, model_of, networks_of
from benchmarks.contenders.unavailable import Unavailable
from benchmarks.measure.original import in_original_form
from benchmarks.measure.workload import Workload
from export.checkpoints.load import Model
from export.parity import network_input
from psp_rt import InputSpec
from psp_rt.hardware.probe import probe_driver
from psp_rt.images import Pixels

DEVICE = "cuda:0"
INSTALL = "pip install torch --index-url https://download.pytorch.org/whl/cu126 (see pytorch.org)"


class PyTorchOnGpu(PyTorch):
    """A model in PyTorch whose stages are calls of their own, on tensors that are there already."""

    def device_stages(self, images: Pixels, seed: int, first_row: int) -> Mapping[str, Callable[[], object]]:
        """Return the stages between image and picture; scaling bytes to floats is in none of them.

        Args:
            images: [N, H, W, C].
            seed: Of the style that is mixed in.
            first_row: Of the code that takes the style.
        """
        prepared = network_input(images, self._spec)
        there = self.upload(prepared)
        codes = self.encode_there(there)
        pictures = self.generate_there(codes)
        return {
            "upload": lambda: self.upload(prepared),
            "encode": lambda: self.encode_there(there),
            "style-mix": lambda: self.with_style_there(codes, seed, first_row),
            "generate": lambda: self.generate_there(codes),
            "download": lambda: self.download(pictures),
        }


def open_ours(workload: Workload, autocast: torch.dtype | None = None) -> PyTorch:
    """Open our networks, in FP32 or under autocast."""
    model = _model_there(workload)
    return _contender(workload.input, networks_of(workload, model), autocast)


def open_original(workload: Workload) -> PyTorch:
    """Open the original formulation in FP32."""
    model = _model_there(workload)
    return _contender(workload.input, networks_of(workload, model, in_original_form(model.generator)), None)


def open_compiled(workload: Workload) -> PyTorch:
    """Open our networks through torch.compile, under FP16 autocast."""
    networks = networks_of(workload, _model_there(workload)).compiled()
    return _contender(workload.input, networks, torch.float16)


def _contender(spec: InputSpec, networks: Networks, autocast: torch.dtype | None) -> PyTorch:
    return PyTorchOnGpu(spec, networks, autocast=autocast, device=DEVICE)


def _model_there(workload: Workload) -> Model:
    """Return a copy of the model on the GPU."""
    driver = probe_driver()
    if driver.problem:
        raise Unavailable(driver.problem)
    if not torch.cuda.is_available():
        raise Unavailable(f"torch {torch.__version__} cannot use the GPU; {INSTALL}")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = model_of(workload)
    return replace(
        model,
        encoder=None if model.encoder is None else copy.deepcopy(model.encoder).to(DEVICE),
        generator=copy.deepcopy(model.generator).to(DEVICE),
        latent_avg=None if model.latent_avg is None else model.latent_avg.to(DEVICE),
    )
