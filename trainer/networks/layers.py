"""Layers that the encoder and the generator have in common (StyleGAN2, arXiv:1912.04958)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EqualLinear(nn.Module):
    """A linear layer whose weights are scaled at run time, so that all learn at one rate.

    The factor is ``lr_mul / sqrt(inputs)`` (Progressive GAN, arXiv:1710.10196, section 4.1).
    """

    def __init__(self, inputs: int, outputs: int, *, bias: float = 0.0, lr_mul: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_mul)
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.lr_mul = lr_mul
        self.scale = lr_mul / inputs**0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias * self.lr_mul)


def pixel_norm(x: Tensor) -> Tensor:
    """Bring each row of [N, D] to unit mean square."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


def leaky_relu(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2 that keeps the variance: the gain is sqrt(2)."""
    return F.leaky_relu(x, 0.2) * 2**0.5


def binomial_kernel() -> Tensor:
    """Return the 4x4 FIR filter of StyleGAN2 with its upsampling gain of 4, [4, 4]."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(taps, taps) / 64 * 4


def fir_filter(x: Tensor, kernel: Tensor, *, padding: tuple[int, int]) -> Tensor:
    """Filter every channel of [N, C, H, W] by one 2-D kernel, (before, after) zeros on both axes."""
    channels = x.shape[1]
    weight = kernel.flip(0, 1).to(x.dtype).expand(channels, 1, *kernel.shape)
    before, after = padding
    if before == after:
        return F.conv2d(x, weight, padding=before, groups=channels)
    return F.conv2d(F.pad(x, (before, after, before, after)), weight, groups=channels)


def fir_upsample(x: Tensor, kernel: Tensor) -> Tensor:
    """Double [N, C, H, W]: zeros between the pixels, then the filter (upfirdn2d with pad (2, 1))."""
    channels = x.shape[1]
    weight = kernel.to(x.dtype).expand(channels, 1, *kernel.shape)
    return F.conv_transpose2d(x, weight, stride=2, padding=1, groups=channels)
