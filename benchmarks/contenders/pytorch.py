"""The networks in PyTorch: ours, the original formulation and compiled ones, on the CPU and on a GPU.

FP32 means FP32: TensorFloat-32, which PyTorch uses for convolutions by default, is switched off.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.contenders.contender import Unavailable
from benchmarks.workloads.inputs import latent, read
from benchmarks.workloads.models import in_original_form
from export.checkpoints.tensors import Model
from export.parity import network_input
from psp_rt.engine import InputSpec
from psp_rt.hardware import probe_driver
from psp_rt.images import Pixels
from psp_rt.style import Codes
from trainer.networks import Noise, Translation

if TYPE_CHECKING:
    from benchmarks.workloads.workload import Workload

INSTALL = "pip install torch --index-url https://download.pytorch.org/whl/cu126 (see pytorch.org)"


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The three networks as functions.

    Args:
        encode: [N, C, H, W] -> codes [N, L, D].
        map: z [N, D] -> styles [N, D].
        generate: Codes [N, L, D] -> pictures [N, 3, S, S] in [-1, 1].
        rows: Rows of the picture that are kept; None for all.
    """

    encode: Callable[[Tensor], Tensor]
    map: Callable[[Tensor], Tensor]
    generate: Callable[[Tensor], Tensor]
    rows: tuple[int, int] | None

    def compiled(self) -> Networks:
        """Return the networks through torch.compile, which compiles each batch size at its first call."""
        encode, generate = torch.compile(self.encode), torch.compile(self.generate)
        return Networks(encode=encode, map=self.map, generate=generate, rows=self.rows)


class PyTorch:
    """A model in PyTorch.

    Args:
        autocast: What PyTorch computes its convolutions and products in; None for FP32.
        device: "cpu" or "cuda:N".
    """

    def __init__(
        self,
        spec: InputSpec,
        networks: Networks,
        *,
        autocast: torch.dtype | None = None,
        device: str = "cpu",
    ) -> None:
        self._spec, self.networks = spec, networks
        self._rows = slice(None) if networks.rows is None else slice(*networks.rows)
        self._autocast, self._device = autocast, torch.device(device)

    def encode(self, images: Pixels) -> Codes:
        """Return codes [N, L, D]."""
        return self.download(self.encode_there(self.upload(network_input(images, self._spec))))

    def with_style(self, codes: Codes, seed: int, first_row: int) -> Codes:
        """Return codes [N, L, D] with the style of a seed from one row on."""
        return self.download(self.with_style_there(self.upload(torch.from_numpy(codes)), seed, first_row))

    def generate(self, codes: Codes) -> Pixels:
        """Return RGB [N, H, W, 3]."""
        return self.download(self.generate_there(self.upload(torch.from_numpy(codes))))

    def translate(self, pictures: Sequence[Path]) -> Sequence[Any]:
        """Return N arrays [H, W, 3], RGB."""
        images = self.upload(network_input(read(pictures, self._spec), self._spec))
        return list(self.download(self.generate_there(self.encode_there(images))))

    def close(self) -> None:
        """Release the functions; on the CPU the weights belong to the workload."""
        self.networks = Networks(encode=torch.clone, map=torch.clone, generate=torch.clone, rows=None)

    def upload(self, tensor: Tensor) -> Tensor:
        """Copy a tensor to the device; on the CPU it is already there."""
        return tensor.to(self._device)

    def download(self, tensor: Tensor) -> np.ndarray:
        """Wait for a result and copy it to the host."""
        return tensor.cpu().numpy()

    @torch.inference_mode()
    def encode_there(self, images: Tensor) -> Tensor:
        """Return codes [N, L, D] of images [N, C, H, W], both on the device."""
        with self._computing():
            return self.networks.encode(images).float()

    @torch.inference_mode()
    def with_style_there(self, codes: Tensor, seed: int, first_row: int) -> Tensor:
        """Return other codes [N, L, D] on the device."""
        z = self.upload(torch.from_numpy(latent(seed, codes.shape[-1])))
        mixed = codes.clone()
        mixed[:, first_row:] = self.networks.map(z)
        return mixed

    @torch.inference_mode()
    def generate_there(self, codes: Tensor) -> Tensor:
        """Return RGB bytes [N, H, W, 3] of codes, both on the device."""
        with self._computing():
            pictures = self.networks.generate(codes)[:, :, self._rows].float()
        levels = (pictures * 127.5 + 128).clamp(0, 255).to(torch.uint8)
        return levels.permute(0, 2, 3, 1).contiguous()

    def _computing(self) -> AbstractContextManager[object]:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self._device.type, self._autocast)


class PyTorchOnGpu(PyTorch):
    """A model in PyTorch on a GPU, whose stages can be timed separately on tensors that are already there."""

    def device_stages(self, images: Pixels, seed: int, first_row: int) -> Mapping[str, Callable[[], object]]:
        """Return the stages between image and picture. None of them includes scaling bytes to floats.

        Args:
            images: [N, H, W, C].
            seed: Seed of the style that is mixed in.
            first_row: First row of the code that takes the style.
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


def open_pytorch(
    workload: Workload,
    *,
    original: bool = False,
    compiled: bool = False,
    autocast: torch.dtype | None = None,
    device: str = "cpu",
) -> PyTorch:
    """Open the model in PyTorch.

    Args:
        workload: The model and its inputs.
        original: Use the original formulation of the generator; the encoder has no other one.
        compiled: Use torch.compile.
        autocast: What PyTorch computes its convolutions and products in; None for FP32.
        device: "cpu" or "cuda:N".

    Raises:
        Unavailable: Only an engine was given, or the device cannot be used.
    """
    if workload.model is None:
        raise Unavailable("needs the model in PyTorch; add --checkpoint FILE")
    model = workload.model
    if device != "cpu":
        model = _copy_to_gpu(model, device)
    if model.encoder is None:
        raise Unavailable("the checkpoint has no encoder")
    torch.set_num_threads(workload.threads)
    noise: Noise = "none" if workload.manifest.noise == "none" else "const"
    generator = in_original_form(model.generator) if original else model.generator
    networks = Networks(
        encode=Translation(model.encoder, generator, model.latent_avg).encode,
        map=model.generator.mapping,
        generate=lambda codes: generator(codes, noise=noise),
        rows=model.output_rows,
    )
    kind = PyTorch if device == "cpu" else PyTorchOnGpu
    return kind(
        workload.input, networks.compiled() if compiled else networks, autocast=autocast, device=device
    )


def _copy_to_gpu(model: Model, device: str) -> Model:
    driver = probe_driver()
    if driver.problem:
        raise Unavailable(driver.problem)
    if not torch.cuda.is_available():
        raise Unavailable(f"torch {torch.__version__} cannot use the GPU; {INSTALL}")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return replace(
        model,
        encoder=None if model.encoder is None else copy.deepcopy(model.encoder).to(device),
        generator=copy.deepcopy(model.generator).to(device),
        latent_avg=None if model.latent_avg is None else model.latent_avg.to(device),
    )
