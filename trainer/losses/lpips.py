"""LPIPS v0.1 with AlexNet or VGG-16 features: how different two images look.

R. Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
arXiv:1801.03924. Five feature maps of each image are brought to unit length at every position;
the squared differences are weighted per channel, averaged over the positions and summed.

The weights are read from two files that the user names; nothing is downloaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psp_rt.errors import InputError
from trainer.losses import weight_files

HEADS = "https://github.com/richzhang/PerceptualSimilarity, lpips/weights/v0.1"


@dataclass(frozen=True, kw_only=True)
class Features:
    """A feature network, as torchvision's `features` numbers its layers."""

    layers: Mapping[int, tuple[int, int, int, int, int]]  # in, out, kernel, stride, padding
    taps: tuple[int, ...]  # layers whose maps are compared, after their ReLU
    pooled_before: tuple[int, ...]
    pool: int  # pixels a side of the max-pooling, whose stride is 2
    smallest: int  # pixels a side that the poolings need
    source: str
    heads_source: str


ALEX = Features(
    layers={
        0: (3, 64, 11, 4, 2),
        3: (64, 192, 5, 1, 2),
        6: (192, 384, 3, 1, 1),
        8: (384, 256, 3, 1, 1),
        10: (256, 256, 3, 1, 1),
    },
    taps=(0, 3, 6, 8, 10),
    pooled_before=(3, 6),
    pool=3,
    smallest=31,
    source="torchvision's AlexNet weights (https://download.pytorch.org/models/alexnet-owt-7be5be79.pth) "
    "or its features.* tensors alone",
    heads_source=f"alex.pth of LPIPS v0.1 ({HEADS}/alex.pth)",
)
_VGG_CHANNELS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256)}
_VGG_CHANNELS |= {14: (256, 256), 17: (256, 512)} | dict.fromkeys((19, 21, 24, 26, 28), (512, 512))
VGG = Features(
    layers={index: (*channels, 3, 1, 1) for index, channels in _VGG_CHANNELS.items()},
    taps=(2, 7, 14, 21, 28),
    pooled_before=(5, 10, 17, 24),
    pool=2,
    smallest=16,
    source="torchvision's VGG-16 weights (https://download.pytorch.org/models/vgg16-397923af.pth) "
    "or its features.* tensors alone",
    heads_source=f"vgg.pth of LPIPS v0.1 ({HEADS}/vgg.pth)",
)

LOSS_SIZE = 128  # pixels a side, at least
LOSS_STRIDE = 8  # pixels between two places, after AlexNet's first pooling
Kind = TypeVar("Kind", bound="Lpips")


class Lpips(nn.Module):
    """Measure the perceptual distance of images; `LpipsAlex` and `LpipsVgg` are the two kinds.

    >>> lpips = LpipsAlex.load(features="alexnet-owt-7be5be79.pth", heads="alex.pth")
    >>> with torch.no_grad():
    ...     wanted = lpips.features(targets)  # once, however many candidates follow
    >>> loss = lpips.distance(lpips.features(images), wanted).mean()
    """

    NETWORK: Features
    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers = self.NETWORK.layers
        self.convs = nn.ModuleDict({str(index): nn.Conv2d(*shape) for index, shape in layers.items()})
        self.heads = nn.ParameterList([torch.zeros(layers[tap][1]) for tap in self.NETWORK.taps])
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.requires_grad_(False)

    @classmethod
    def load(cls: type[Kind], *, features: str | Path, heads: str | Path) -> Kind:
        """Load the file of the feature network and the file of the linear heads."""
        lpips, network = cls(), cls.NETWORK
        convs = weight_files.read(features, source=network.source)
        lines = weight_files.read(heads, source=network.heads_source)
        for index, conv in lpips.convs.items():
            for part in ("weight", "bias"):
                name = f"features.{index}.{part}"
                weight_files.copy(getattr(conv, part), convs, name, features, network.source)
        for number, head in enumerate(lpips.heads):
            name = f"lin{number}.model.1.weight"
            weight_files.copy(head.view(1, -1, 1, 1), lines, name, heads, network.heads_source)
        return lpips.eval()

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the five feature maps [N, C, h, w] of RGB images [N, 3, H, W] in [-1, 1].

        They are float32 of unit length at every position: under bfloat16 autocast only the
        convolutions run in bfloat16, whose 8 bits would blur the differences of similar images.
        """
        return unit_length(self.maps(images))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the five maps as the network gives them, [N, C, h, w], of RGB images [N, 3, H, W]."""
        network = self.NETWORK
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < network.smallest:
            raise InputError(
                f"LPIPS needs RGB images [N, 3, H, W] of at least {network.smallest} pixels a side, "
                f"got {tuple(images.shape)}; enlarge them first"
            )
        x = (images.float() - self.shift) / self.scale
        maps = []
        for name, conv in self.convs.items():
            if int(name) in network.pooled_before:
                x = F.max_pool2d(x, kernel_size=network.pool, stride=2)
            x = F.relu(conv(x))
            if int(name) in network.taps:
                maps.append(x)
        return maps

    def distance(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
        """Return the distance [N] of two results of `features`."""
        total = first[0].new_zeros(len(first[0]))
        for a, b, head in zip(first, second, self.heads, strict=True):
            per_channel = (a - b).square().mean(dim=(2, 3))  # [N, C]
            total = total + (per_channel * head).sum(dim=1)
        return total

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the distance [N] of images and targets, both RGB [N, 3, H, W] in [-1, 1]."""
        return self.distance(self.features(images), self.features(targets))


class LpipsAlex(Lpips):
    """LPIPS with AlexNet, which pSp trains with."""

    NETWORK = ALEX


class LpipsVgg(Lpips):
    """LPIPS with VGG-16, to compare with figures that use it."""

    NETWORK = VGG


def enlarge(pictures: Tensor) -> Tensor:
    """Return pictures in the size that LPIPS needs as a loss: small ones enlarged, others unchanged.

    AlexNet's first layer has a stride of four pixels, so at 64x64 an eye covers one or two places: LPIPS
    accepted smudges there, and after 170,000 photos a generator still made nothing else. With pictures
    of twice the size, eyes and mouths appeared within a few hundred steps.
    """
    if pictures.shape[-1] < LOSS_SIZE:
        pictures = F.interpolate(pictures, size=(LOSS_SIZE, LOSS_SIZE), mode="bilinear")
    return pictures.contiguous(memory_format=torch.channels_last)


def loss(lpips: Lpips, pictures: Tensor, targets: Tensor) -> Tensor:
    """Return the mean distance of pictures and targets [N, 3, S, S] for training.

    Small pictures are shifted at random, or a generator would learn LPIPS's grid.
    """
    shift = random_shift(pictures)
    with torch.no_grad():
        wanted = lpips.features(shown(targets, shift))
    return lpips.distance(lpips.features(shown(pictures, shift)), wanted).mean()


def random_shift(pictures: Tensor) -> tuple[int, int]:
    """Return how many rows and columns of pictures [N, 3, S, S] the loss cuts off this time."""
    if pictures.shape[-1] > LOSS_SIZE:
        return 0, 0
    top, left = torch.randint(0, LOSS_STRIDE, (2,)).tolist()
    return top, left


def shown(pictures: Tensor, shift: tuple[int, int]) -> Tensor:
    """Return pictures as the loss sees them: enlarged and shifted."""
    return enlarge(pictures)[:, :, shift[0] :, shift[1] :]


def unit_length(maps: Sequence[Tensor]) -> list[Tensor]:
    """Return feature maps [N, C, h, w] brought to unit length at every position, in float32."""
    return [_unit_length(x.float()) for x in maps]


def _unit_length(x: Tensor) -> Tensor:
    # The clamp keeps the gradient of the root finite where every channel is zero.
    length = x.square().sum(dim=1, keepdim=True).clamp_min(1e-24).sqrt()
    return x / (length + 1e-10)
