"""Exportable forms of the operations for which the StyleGAN2 code has its own CUDA kernels.

All are exact rewrites of the public implementation (tests/export/test_ops.py), made of plain
convolutions, matrix products and elementwise operations with constant weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEMODULATION_EPSILON = 1e-8
ACTIVATION_GAIN = 2**0.5


class ModulatedConv(nn.Module):
    """Modulated convolution as scale, plain convolution, scale (StyleGAN2, arXiv:1912.04958, eq. 1-3).

    The public code folds the style into one weight per sample and runs a grouped convolution.
    Those weights are not constants, so no runtime can pre-pack them, and their squares overflow
    FP16. Scaling the activations instead computes the same with a constant weight. Weight and
    style are first scaled to unit size (as in stylegan2-ada); demodulation cancels that, and the
    epsilon is scaled with them, so the result is exact and the convolution's output is no larger
    than its input.

    Args:
        weight: [O, I, k, k], with its run-time factor 1 / sqrt(fan_in) applied.
        gain: Factor on the result, folded into the demodulation.
        bias: Added to the result, [O]; where a filter follows, as the bias of that filter at no cost.
        up: Double the resolution with this FIR kernel [4, 4].
    """

    weight: Tensor
    energies: Tensor
    epsilon: Tensor
    bias: Tensor | None

    def __init__(
        self, weight: Tensor, *, gain: float = 1.0, bias: Tensor | None = None, up: Tensor | None = None
    ) -> None:
        super().__init__()
        # [O]; an output channel without weights stays zero
        largest = weight.abs().amax(dim=(1, 2, 3)).clamp(min=torch.finfo(torch.float32).tiny)
        weight_scale = 1 / (largest * weight[0].numel() ** 0.5)
        weight = weight * weight_scale[:, None, None, None]
        self.register_buffer("weight", weight)
        self.register_buffer("energies", weight.square().sum(dim=(2, 3)).T.contiguous() / gain**2)  # [I, O]
        self.register_buffer(
            "epsilon", DEMODULATION_EPSILON * weight_scale.square()[None] / gain**2
        )  # [1, O]
        self.register_buffer("bias", bias[:, None, None] if bias is not None and up is None else None)
        self.upsample = None if up is None else UpConv(weight, up, bias)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Convolve [N, I, H, W] with a style [N, I]; the result is [N, O, H, W] or twice as large."""
        largest = style.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)  # a style of zeros gives zeros
        style_scale = 1 / largest  # [N, 1]
        style = style * style_scale
        x = x * style[:, :, None, None]
        energy = style.square() @ self.energies + self.epsilon * style_scale.square()
        demodulation = energy.rsqrt()[:, :, None, None]
        if self.upsample is not None:
            return self.upsample(x, demodulation)
        x = F.conv2d(x, self.weight, padding=1) * demodulation
        return x if self.bias is None else x + self.bias


class UpConv(nn.Module):
    """Stride-2 transposed convolution, demodulation, FIR filter with bias.

    Folding both into one 6x6 transposed convolution, or into four 3x3 ones for the four kinds of output
    pixel, needs four times the multiplications. On a CPU the two separate steps are twice as fast.
    """

    weight: Tensor
    fir: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, kernel: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.transpose(0, 1).contiguous())
        channels = weight.shape[0]
        self.register_buffer("fir", kernel.flip(0, 1).expand(channels, 1, *kernel.shape).contiguous())
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, demodulation: Tensor) -> Tensor:
        x = F.conv_transpose2d(x, self.weight, stride=2) * demodulation
        return F.conv2d(x, self.fir, self.bias, padding=1, groups=self.fir.shape[0])


class Upsample(nn.Module):
    """Double a picture with the FIR kernel: upfirdn2d of the public code with up 2 and pad (2, 1).

    Each output pixel sees 2x2 input pixels, so the four kinds of output pixel are the channels of one
    3x3 convolution, which depth-to-space then interleaves.
    """

    weight: Tensor

    def __init__(self, kernel: Tensor, channels: int = 3) -> None:
        super().__init__()
        kernels = torch.zeros(channels * 4, channels, 3, 3)
        for row in range(2):
            for column in range(2):
                # Output pixel 2y + row sees input pixel y + d through the tap row + 1 - 2d, for d = -1, 0, 1.
                for d in (-1, 0, 1):
                    for e in (-1, 0, 1):
                        tap, other = row + 1 - 2 * d, column + 1 - 2 * e
                        if 0 <= tap < 4 and 0 <= other < 4:
                            for channel in range(channels):
                                kernels[channel * 4 + row * 2 + column, channel, d + 1, e + 1] = kernel[
                                    tap, other
                                ]
        self.kernel = kernel  # [4, 4]
        self.register_buffer("weight", kernels)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(F.conv2d(x, self.weight, padding=1), 2)


class AveragePool(nn.Module):
    """Average over windows that may overlap: AdaptiveAvgPool2d, for any two sizes.

    The exporter supports AdaptiveAvgPool2d only if the output's side divides the input's, but naive W+
    pools 16 pixels to 7. Averaging is linear in each axis, so it is a product with one matrix per side.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, size: tuple[int, int], *, pooled: int) -> None:
        super().__init__()
        self.register_buffer("rows", _averages(size[0], pooled))
        self.register_buffer("columns", _averages(size[1], pooled).T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return self.rows @ x @ self.columns


def _averages(length: int, pooled: int) -> Tensor:
    """Return the matrix [pooled, length] whose rows average the windows that PyTorch pools over."""
    return F.adaptive_avg_pool1d(torch.eye(length), pooled).T.contiguous()
