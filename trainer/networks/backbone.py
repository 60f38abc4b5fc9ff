"""The IR-SE50 backbone (ArcFace, arXiv:1801.07698) in any width, with the taps pSp reads."""

import torch.nn.functional as F
from torch import Tensor, nn


class SqueezeExcite(nn.Module):
    """Channel gates from the average of each channel (arXiv:1709.01507)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = x.mean(dim=(2, 3), keepdim=True)
        return x * self.fc2(F.relu(self.fc1(gate))).sigmoid()


class PReLU(nn.PReLU):
    """PReLU with one slope a channel.

    While training on a CPU in bfloat16, the native backward pass alone took a quarter of the
    encoder's time; two ReLUs give the same numbers in half of it.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and x.device.type == "cpu"):
            return super().forward(x)
        return F.relu(x) - self.weight[:, None, None].to(x.dtype) * F.relu(-x)


class Subsample(nn.Module):
    """Every stride-th pixel: what the public code writes as a max-pooling of one pixel."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride]


class Bottleneck(nn.Module):
    """Improved residual block with squeeze-and-excite."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module
        if inputs == outputs:
            self.shortcut_layer = Subsample(stride)
        else:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            SqueezeExcite(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.res_layer(x)
        return residual + self.shortcut_layer(x)


class PlainBottleneck(Bottleneck):
    """The block without squeeze-and-excite, as IR networks have it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, stride)
        self.res_layer = nn.Sequential(*list(self.res_layer)[:-1])


def input_layer(channels: int, width: int) -> nn.Sequential:
    """First convolution of the backbone."""
    return nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), PReLU(width))


def residual_body(
    widths: tuple[int, ...], depths: tuple[int, ...], *, block: type[Bottleneck] = Bottleneck
) -> nn.Sequential:
    """Four stages of blocks; the first block of each stage halves the picture."""
    blocks = []
    below = widths[0]
    for width, depth in zip(widths, depths, strict=True):
        for number in range(depth):
            blocks.append(block(below, width, 2 if number == 0 else 1))
            below = width
    return nn.Sequential(*blocks)
