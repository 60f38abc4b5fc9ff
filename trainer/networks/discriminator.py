"""The StyleGAN2 discriminator: picture -> how real it looks (arXiv:1912.04958, section 4.1).

Only training needs it. Parameter names are those of rosinality/stylegan2-pytorch.
"""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks.generator import ChannelBias
from trainer.networks.layers import EqualLinear, binomial_kernel, fir_filter, leaky_relu


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Sizes of a discriminator.

    Args:
        channels: Channels at 4x4, 8x8, ... up to the picture's size, so it also says that size.
        stddev_group: Pictures that are compared with each other; a batch must be a multiple of it.
    """

    channels: tuple[int, ...]
    stddev_group: int = 4

    @property
    def size(self) -> int:
        return int(2 ** (len(self.channels) + 1))


class EqualConv(nn.Module):
    """A convolution without bias whose weights are scaled at run time, as in `EqualLinear`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.scale = (inputs * kernel * kernel) ** -0.5
        self.stride = stride
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, stride=self.stride, padding=self.padding)


class Blur(nn.Module):
    """The low-pass filter before each halving of the side."""

    kernel: Tensor

    def __init__(self, *, padding: int) -> None:
        super().__init__()
        self.register_buffer("kernel", binomial_kernel() / 4)  # without the gain of upsampling
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return fir_filter(x, self.kernel, padding=(self.padding, self.padding))


class Halving(Blur):
    """The filter, computed only where a stride of 2 samples it: a quarter of the work."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":  # where the gradient of a strided filter is 30 times slower
            return super().forward(x)[:, :, ::2, ::2]
        channels = x.shape[1]
        weight = self.kernel.to(x.dtype).expand(channels, 1, *self.kernel.shape)
        return F.conv2d(x, weight, stride=2, padding=self.padding, groups=channels)


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut, from one side to half of it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(EqualConv(inputs, inputs, 3, padding=1), ChannelBias(inputs))
        self.conv2 = nn.Sequential(
            Blur(padding=2), EqualConv(inputs, outputs, 3, stride=2), ChannelBias(outputs)
        )
        self.skip = nn.Sequential(Halving(padding=1), EqualConv(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv2(self.conv1(x)) + self.skip(x)) * 0.5**0.5


class Discriminator(nn.Module):
    """StyleGAN2's residual discriminator.

    Args:
        config: Sizes.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.channels[::-1]
        self.convs = nn.Sequential(
            nn.Sequential(EqualConv(3, widths[0], 1), ChannelBias(widths[0])),
            *(ResidualBlock(wide, narrow) for wide, narrow in itertools.pairwise(widths)),
        )
        last = widths[-1]
        self.final_conv = nn.Sequential(EqualConv(last + 1, last, 3, padding=1), ChannelBias(last))
        self.final_linear = nn.ModuleList([EqualLinear(last * 16, last), EqualLinear(last, 1)])

    def forward(self, pictures: Tensor) -> Tensor:
        """Return one score for each of the pictures [N, 3, S, S] in [-1, 1], [N]; above 0 is real."""
        x = self.convs(pictures.contiguous(memory_format=torch.channels_last))
        with torch.autocast(x.device.type, enabled=False):  # cheap, and the score is a small difference
            x = self.final_conv(append_stddev(x.float(), group=self.config.stddev_group))
            x = leaky_relu(self.final_linear[0](x.flatten(1)))
            score: Tensor = self.final_linear[1](x)
        return score.squeeze(1)


def append_stddev(x: Tensor, *, group: int) -> Tensor:
    """Append a channel that says how much the pictures of a group differ, [N, C + 1, H, W].

    So the discriminator notices when all generated pictures look alike (Progressive GAN,
    arXiv:1710.10196, section 3).
    """
    count, channels, height, width = x.shape
    group = min(group, count)
    members = x.reshape(group, count // group, channels, height, width)
    deviation = (members.var(dim=0, correction=0) + 1e-8).sqrt().mean(dim=(1, 2, 3))  # [N / group]
    return torch.cat([x, deviation.repeat(group)[:, None, None, None].expand(-1, 1, height, width)], dim=1)
