"""The StyleGAN2 generator: styles -> picture (arXiv:1912.04958)."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks.layers import (
    EqualLinear,
    binomial_kernel,
    fir_filter,
    fir_upsample,
    leaky_relu,
    pixel_norm,
)

Noise = Literal["const", "random", "none"]


def official_channels(size: int, multiplier: int = 2) -> tuple[int, ...]:
    """Return the channels at 4x4, 8x8, ... size of the public models (config-f: multiplier 2)."""
    widths = {4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64, 512: 32, 1024: 16}
    return tuple(width * (1 if side <= 32 else multiplier) for side, width in widths.items() if side <= size)


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Sizes of a generator.

    Args:
        channels: Channels at 4x4, 8x8, ... up to the output size, so it also says that size.
        style_dim: Length D of one style.
        mapping_layers: Depth of the mapping network.
        conv_clamp: Bound on the activations, as some stylegan2-ada models have; None for no bound.
    """

    channels: tuple[int, ...]
    style_dim: int = 512
    mapping_layers: int = 8
    conv_clamp: float | None = None

    @property
    def size(self) -> int:
        return int(2 ** (len(self.channels) + 1))

    @property
    def num_styles(self) -> int:
        return 2 * len(self.channels)


class ModulatedConv(nn.Module):
    """Convolution whose input channels are scaled by a style (equations 1 and 3 of the paper).

    The style scales the activations and the demodulation scales the result, which equals scaling
    the weights of every sample and running a grouped convolution (equation 1), at the cost of a
    plain convolution. `benchmarks` keeps the grouped form for comparison.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        style_dim: int,
        *,
        up: bool = False,
        demodulate: bool = True,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, kernel, kernel))
        self.modulation = EqualLinear(style_dim, inputs, bias=1.0)
        self.demodulate = demodulate
        self.padding = kernel // 2
        self.up = up
        if up:
            self.blur = Filter()

    @property
    def scaled_weight(self) -> Tensor:
        """The weight [O, I, k, k] with its run-time factor 1 / sqrt(fan_in)."""
        weight = self.weight[0]
        return weight * weight[0].numel() ** -0.5

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        weight = self.scaled_weight
        scale = self.modulation(style).to(x.dtype)  # [N, I]
        x = x * scale[:, :, None, None]
        if self.up:
            x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
            x = fir_filter(x, self.blur.kernel, padding=(1, 1))
        else:
            x = F.conv2d(x, weight, padding=self.padding)
        if not self.demodulate:
            return x
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 is too imprecise for a sum of squares
            energy = scale.float().square() @ weight.float().square().sum(dim=(2, 3)).T  # [N, O]
            demodulation = (energy + 1e-8).rsqrt()
        return x * demodulation[:, :, None, None].to(x.dtype)


class Filter(nn.Module):
    """Holder of the FIR filter, under the name that the checkpoints give it."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", binomial_kernel())


class NoiseStrength(nn.Module):
    """Adds one noise picture, scaled by one learned number, to all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return x + (self.weight * noise).to(x.dtype)


class ChannelBias(nn.Module):
    """Bias and leaky ReLU, under the name that the checkpoints give it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return leaky_relu(x + self.bias[None, :, None, None].to(x.dtype))


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias, activation."""

    def __init__(self, inputs: int, outputs: int, config: GeneratorConfig, *, up: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, 3, config.style_dim, up=up)
        self.noise = NoiseStrength()
        self.activate = ChannelBias(outputs)
        self.conv_clamp = config.conv_clamp

    def forward(self, x: Tensor, style: Tensor, constant: Tensor, noise: Noise) -> Tensor:
        x = self.conv(x, style)
        if noise == "const":
            x = self.noise(x, constant)
        elif noise == "random":
            x = self.noise(x, torch.randn(x.shape[0], 1, *x.shape[2:], device=x.device, dtype=x.dtype))
        x = self.activate(x)
        return x if self.conv_clamp is None else x.clamp(-self.conv_clamp, self.conv_clamp)


class ToRgb(nn.Module):
    """The colors of one resolution, added to the upsampled picture of the one below."""

    def __init__(self, inputs: int, config: GeneratorConfig, *, up: bool = True) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, 3, 1, config.style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.conv_clamp = config.conv_clamp
        if up:
            self.upsample = Filter()

    def forward(self, x: Tensor, style: Tensor, below: Tensor | None = None) -> Tensor:
        rgb = self.conv(x, style).float() + self.bias
        if self.conv_clamp is not None:
            rgb = rgb.clamp(-self.conv_clamp, self.conv_clamp)
        return rgb if below is None else rgb + fir_upsample(below, self.upsample.kernel)


class ConstantInput(nn.Module):
    """The learned 4x4 start of every picture."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))


class NoiseConstants(nn.Module):
    """The noise pictures of a checkpoint, one a convolution: noise_0 [1, 1, 4, 4], noise_1 ..."""

    def __init__(self, resolutions: int) -> None:
        super().__init__()
        for layer in range(2 * resolutions - 1):
            side = 2 ** ((layer + 5) // 2)
            self.register_buffer(f"noise_{layer}", torch.randn(1, 1, side, side))

    def __getitem__(self, layer: int) -> Tensor:
        return self.get_buffer(f"noise_{layer}")


class Generator(nn.Module):
    """StyleGAN2 with skip connections: mapping network and synthesis network.

    Args:
        config: Sizes.

    Which style goes where (0-based rows of the code): ``conv1`` 0, ``to_rgb1`` 1, then for each
    resolution the upsampling convolution i, the convolution i + 1 and the colors i + 2, which
    the next upsampling convolution shares; i = 1, 3, 5 ...
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.style = nn.ModuleList([nn.Module()])  # the checkpoints number the mapping layers from 1
        self.style.extend(
            EqualLinear(config.style_dim, config.style_dim, lr_mul=0.01) for _ in range(config.mapping_layers)
        )
        first, *rest = config.channels
        self.input = ConstantInput(first)
        self.conv1 = StyledConv(first, first, config)
        self.to_rgb1 = ToRgb(first, config, up=False)
        self.convs = nn.ModuleList()
        self.to_rgbs = nn.ModuleList()
        below = first
        for channels in rest:
            self.convs.append(StyledConv(below, channels, config, up=True))
            self.convs.append(StyledConv(channels, channels, config))
            self.to_rgbs.append(ToRgb(channels, config))
            below = channels
        self.noises = NoiseConstants(len(config.channels))

    def mapping(self, z: Tensor) -> Tensor:
        """Map latents [N, D] to styles [N, D]."""
        w = pixel_norm(z)
        for layer in list(self.style)[1:]:
            w = leaky_relu(layer(w))
        return w

    def mean_style(self, samples: int = 10_000, *, seed: int = 0) -> Tensor:
        """Return the mean of many mapped latents, [D]: the latent average of a file that has none."""
        z = torch.randn(samples, self.config.style_dim, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            return self.mapping(z.to(self.input.input)).mean(dim=0)

    def forward(self, codes: Tensor, *, noise: Noise = "const") -> Tensor:
        """Turn codes [N, L, D] into pictures [N, 3, S, S], nominally in [-1, 1]."""
        x = self.input.input.expand(codes.shape[0], -1, -1, -1).contiguous(memory_format=torch.channels_last)
        x = self.conv1(x, codes[:, 0], self.noises[0], noise)
        rgb = self.to_rgb1(x, codes[:, 1])
        for block, to_rgb in enumerate(self.to_rgbs):
            row = 2 * block + 1
            x = self.convs[2 * block](x, codes[:, row], self.noises[row], noise)
            x = self.convs[2 * block + 1](x, codes[:, row + 1], self.noises[row + 1], noise)
            rgb = to_rgb(x, codes[:, row + 2], rgb)
        return rgb
