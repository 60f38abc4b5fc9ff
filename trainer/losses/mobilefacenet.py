"""MobileFaceNet: a light identity network (arXiv:1804.07573), 128 numbers from a 112x96 crop of a face.

Tensor names are those of the widely copied PyTorch training code; its files hold them under
``net_state_dict``. No weights come with this project.
"""

from torch import Tensor, nn

SOURCE = (
    "a MobileFaceNet checkpoint (net_state_dict, 128 outputs) "
    "as https://github.com/Xiaoccer/MobileFaceNet_Pytorch makes"
)

# Expansion, channels, blocks, stride of the first block (table 1 of the paper).
STAGES = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))


class ConvBlock(nn.Module):
    """Convolution, batch normalisation and, unless linear, PReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.prelu = nn.Identity() if linear else nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.prelu(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """Widen, filter each channel, narrow; added to the input where the shapes allow."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.connects = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.PReLU(hidden),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.PReLU(hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return x + y if self.connects else y


class MobileFaceNet(nn.Module):
    """Faces [N, 3, 112, 96] in [-1, 1] -> embeddings [N, 128], not yet of unit length."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvBlock(3, 64, 3, stride=2, padding=1)
        self.dw_conv1 = ConvBlock(64, 64, 3, padding=1, groups=64)
        blocks: list[nn.Module] = []
        below = 64
        for expansion, channels, count, stride in STAGES:
            for index in range(count):
                first = stride if index == 0 else 1
                blocks.append(Bottleneck(below, channels, stride=first, expansion=expansion))
                below = channels
        self.blocks = nn.Sequential(*blocks)
        self.conv2 = ConvBlock(128, 512, 1)
        self.linear7 = ConvBlock(512, 512, (7, 6), groups=512, linear=True)
        self.linear1 = ConvBlock(512, 128, 1, linear=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.dw_conv1(self.conv1(x)))
        return self.linear1(self.linear7(self.conv2(x))).flatten(1)
