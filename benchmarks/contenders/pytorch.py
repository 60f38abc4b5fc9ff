"""The networks in PyTorch: as they are, in the original formulation, and compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.contenders.unavailable import Unavailable
from benchmarks.measure.original import in_original_form
from benchmarks.measure.workload import Workload, latent, read
from export.checkpoints.load import Model
from export.parity import network_input
from psp_rt import InputSpec
from psp_rt.images import Pixels
from psp_rt.style import Codes
from trainer.networks import Encoder, Generator, Translation


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The three networks as functions.

    Args:
        encode: [N, C, H, W] -> codes [N, L, D].
        map: z [N, D] -> styles [N, D].
        generate: Codes [N, L, D] -> pictures [N, 3, S, S] in [-1, 1].
        rows: Of the picture that are kept; None for all.
    """

    encode: Callable[[Tensor], Tensor]
    map: Callable[[Tensor], Tensor]
    generate: Callable[[Tensor], Tensor]
    rows: tuple[int, int] | None

    def compiled(self) -> Networks:
        """Return them through torch.compile; each batch size is compiled at its first call."""
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
        self._spec, self._networks = spec, networks
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
        """Let go of the functions; on the CPU the weights belong to the workload."""
        self._networks = Networks(encode=torch.clone, map=torch.clone, generate=torch.clone, rows=None)

    def upload(self, tensor: Tensor) -> Tensor:
        """Bring a tensor to the device; on the CPU it is there."""
        return tensor.to(self._device)

    def download(self, tensor: Tensor) -> np.ndarray:
        """Bring a result to the host, when it is ready."""
        return tensor.cpu().numpy()

    @torch.inference_mode()
    def encode_there(self, images: Tensor) -> Tensor:
        """Return codes [N, L, D] of images [N, C, H, W], both on the device."""
        with self._computing():
            return self._networks.encode(images).float()

    @torch.inference_mode()
    def with_style_there(self, codes: Tensor, seed: int, first_row: int) -> Tensor:
        """Return other codes [N, L, D] on the device."""
        z = self.upload(torch.from_numpy(latent(seed, codes.shape[-1])))
        mixed = codes.clone()
        mixed[:, first_row:] = self._networks.map(z)
        return mixed

    @torch.inference_mode()
    def generate_there(self, codes: Tensor) -> Tensor:
        """Return RGB bytes [N, H, W, 3] of codes, both on the device."""
        with self._computing():
            pictures = self._networks.generate(codes)[:, :, self._rows].float()
        levels = (pictures * 127.5 + 128).clamp(0, 255).to(torch.uint8)
        return levels.permute(0, 2, 3, 1).contiguous()

    def _computing(self) -> AbstractContextManager[object]:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self._device.type, self._autocast)


def open_ours(workload: Workload) -> PyTorch:
    """Open our networks."""
    model = model_of(workload)
    return PyTorch(workload.input, networks_of(workload, model))


def open_original(workload: Workload) -> PyTorch:
    """Open the original formulation; the encoder has no other one."""
    model = model_of(workload)
    return PyTorch(workload.input, networks_of(workload, model, in_original_form(model.generator)))


def open_original_bf16(workload: Workload) -> PyTorch:
    """Open the original formulation under BF16 autocast."""
    model = model_of(workload)
    networks = networks_of(workload, model, in_original_form(model.generator))
    return PyTorch(workload.input, networks, autocast=torch.bfloat16)


def open_compiled(workload: Workload) -> PyTorch:
    """Open our networks through torch.compile."""
    model = model_of(workload)
    return PyTorch(workload.input, networks_of(workload, model).compiled())


def networks_of(workload: Workload, model: Model, generator: Generator | None = None) -> Networks:
    """Return a model's networks, with another form of its generator if one is given."""
    noise = "none" if workload.manifest.noise == "none" else "const"
    form = generator or model.generator
    return Networks(
        encode=Translation(_encoder(model), form, model.latent_avg).encode,
        map=model.generator.mapping,
        generate=lambda codes: form(codes, noise=noise),
        rows=model.output_rows,
    )


def model_of(workload: Workload) -> Model:
    """Return the model in PyTorch.

    Raises:
        Unavailable: Only an engine was given.
    """
    if workload.model is None:
        raise Unavailable("needs the model in PyTorch; add --checkpoint FILE")
    torch.set_num_threads(workload.threads)
    return workload.model


def _encoder(model: Model) -> Encoder:
    if model.encoder is None:
        raise Unavailable("the checkpoint has no encoder")
    return model.encoder
