"""The networks in PyTorch: as they are, in the original formulation, and compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders.unavailable import Unavailable
from benchmarks.original import in_original_form
from benchmarks.workload import Workload, read
from export.checkpoints import Model
from export.parity import network_input
from psp_rt import InputSpec
from psp_rt.images import Pixels
from psp_rt.style import Codes
from trainer.networks import Encoder, Generator, Translation


class PyTorch:
    """A model in PyTorch on the CPU.

    Args:
        rows: Of the picture that are kept.
        autocast: What PyTorch computes its convolutions and products in; None for FP32.
    """

    def __init__(
        self,
        spec: InputSpec,
        *,
        encode: Callable[[Tensor], Tensor],
        generate: Callable[[Tensor], Tensor],
        rows: tuple[int, int] | None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self._spec = spec
        self._encode, self._generate = encode, generate
        self._rows = slice(None) if rows is None else slice(*rows)
        self._autocast = autocast

    @torch.inference_mode()
    def encode(self, images: Pixels) -> Codes:
        """Return codes [N, L, D]."""
        with self._computing():
            codes: Codes = self._encode(network_input(images, self._spec)).float().numpy()
        return codes

    @torch.inference_mode()
    def generate(self, codes: Codes) -> Pixels:
        """Return RGB [N, H, W, 3]."""
        with self._computing():
            pictures = self._generate(torch.from_numpy(codes))[:, :, self._rows].float()
        levels = (pictures * 127.5 + 128).clamp(0, 255).to(torch.uint8)
        pixels: Pixels = levels.permute(0, 2, 3, 1).contiguous().numpy()
        return pixels

    def translate(self, pictures: Sequence[Path]) -> Sequence[Any]:
        """Return N arrays [H, W, 3], RGB."""
        return list(self.generate(self.encode(read(pictures, self._spec))))

    def close(self) -> None:
        """Let go of the functions; the weights belong to the workload."""
        self._encode = self._generate = torch.clone

    def _computing(self) -> AbstractContextManager[object]:
        return nullcontext() if self._autocast is None else torch.autocast("cpu", self._autocast)


def open_ours(workload: Workload) -> PyTorch:
    """Open our networks."""
    model = _model(workload)
    return _contender(workload, model, model.generator)


def open_original(workload: Workload) -> PyTorch:
    """Open the original formulation; the encoder has no other one."""
    model = _model(workload)
    return _contender(workload, model, in_original_form(model.generator))


def open_original_bf16(workload: Workload) -> PyTorch:
    """Open the original formulation under BF16 autocast."""
    model = _model(workload)
    return _contender(workload, model, in_original_form(model.generator), autocast=torch.bfloat16)


def open_compiled(workload: Workload) -> PyTorch:
    """Open our networks through torch.compile; they are compiled at the first call of each batch size."""
    model = _model(workload)
    translation = Translation(_encoder(model), model.generator, model.latent_avg)
    return PyTorch(
        workload.input,
        encode=torch.compile(translation.encode),
        generate=torch.compile(_generate(workload, model.generator)),
        rows=model.output_rows,
    )


def _contender(
    workload: Workload, model: Model, generator: Generator, autocast: torch.dtype | None = None
) -> PyTorch:
    translation = Translation(_encoder(model), generator, model.latent_avg)
    return PyTorch(
        workload.input,
        encode=translation.encode,
        generate=_generate(workload, generator),
        rows=model.output_rows,
        autocast=autocast,
    )


def _generate(workload: Workload, generator: Generator) -> Callable[[Tensor], Tensor]:
    noise = workload.manifest.noise
    return lambda codes: generator(codes, noise="none" if noise == "none" else "const")


def _encoder(model: Model) -> Encoder:
    if model.encoder is None:
        raise Unavailable("the checkpoint has no encoder")
    return model.encoder


def _model(workload: Workload) -> Model:
    if workload.model is None:
        raise Unavailable("needs the model in PyTorch; add --checkpoint FILE")
    torch.set_num_threads(workload.threads)
    return workload.model
