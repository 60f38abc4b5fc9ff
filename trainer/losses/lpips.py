"""LPIPS v0.1 with AlexNet features: how different two images look.

R. Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
arXiv:1801.03924. Five feature maps of each image are brought to unit length at every position;
the squared differences are weighted per channel, averaged over the positions and summed.

The weights are read from two files that the user names; nothing is downloaded.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psp_rt.errors import InputError

FEATURES_SOURCE = (
    "torchvision's AlexNet weights (https://download.pytorch.org/models/alexnet-owt-7be5be79.pth) "
    "or its features.* tensors alone"
)
HEADS_SOURCE = (
    "alex.pth of LPIPS v0.1 (https://github.com/richzhang/PerceptualSimilarity, lpips/weights/v0.1/alex.pth)"
)

# Index in torchvision's `features` -> in channels, out channels, kernel size, stride, padding.
LAYERS = {
    0: (3, 64, 11, 4, 2),
    3: (64, 192, 5, 1, 2),
    6: (192, 384, 3, 1, 1),
    8: (384, 256, 3, 1, 1),
    10: (256, 256, 3, 1, 1),
}
POOLED_BEFORE = (3, 6)  # 3x3 max-pooling, stride 2
MIN_SIZE = 31  # pixels a side: below it the second pooling has nothing left


class LpipsAlex(nn.Module):
    """Measure the perceptual distance of images.

    >>> lpips = LpipsAlex.load(features="alexnet-owt-7be5be79.pth", heads="alex.pth")
    >>> with torch.no_grad():
    ...     wanted = lpips.features(targets)  # once, however many candidates follow
    >>> loss = lpips.distance(lpips.features(images), wanted).mean()
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleDict({str(index): nn.Conv2d(*shape) for index, shape in LAYERS.items()})
        self.heads = nn.ParameterList([torch.zeros(channels) for _, channels, *_ in LAYERS.values()])
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.requires_grad_(False)

    @classmethod
    def load(cls, *, features: str | Path, heads: str | Path) -> "LpipsAlex":
        """Build it from the AlexNet file and the file of linear heads."""
        lpips = cls()
        convs = _read_tensors(features, source=FEATURES_SOURCE)
        lines = _read_tensors(heads, source=HEADS_SOURCE)
        for index, conv in lpips.convs.items():
            for part in ("weight", "bias"):
                _copy(getattr(conv, part), convs, f"features.{index}.{part}", features, FEATURES_SOURCE)
        for number, head in enumerate(lpips.heads):
            _copy(head.view(1, -1, 1, 1), lines, f"lin{number}.model.1.weight", heads, HEADS_SOURCE)
        return lpips.eval()

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the five feature maps [N, C, h, w] of RGB images [N, 3, H, W] in [-1, 1].

        They are float32 of unit length at every position: under bfloat16 autocast only the
        convolutions run in bfloat16, whose 8 bits would blur the differences of near images.
        """
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < MIN_SIZE:
            raise InputError(
                f"LPIPS needs RGB images [N, 3, H, W] of at least {MIN_SIZE} pixels a side, "
                f"got {tuple(images.shape)}; enlarge them first"
            )
        x = (images.float() - self.shift) / self.scale
        maps = []
        for index, conv in self.convs.items():
            if int(index) in POOLED_BEFORE:
                x = F.max_pool2d(x, kernel_size=3, stride=2)
            x = F.relu(conv(x))
            maps.append(_unit_length(x.float()))
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


def _unit_length(x: Tensor) -> Tensor:
    # The clamp keeps the gradient finite where every channel is zero; the root's would be infinite.
    length = x.square().sum(dim=1, keepdim=True).clamp_min(1e-24).sqrt()
    return x / (length + 1e-10)


def _read_tensors(path: str | Path, *, source: str) -> Mapping[str, Tensor]:
    try:
        tensors = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises a dozen kinds for a file that is none of its own
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"cannot read {path} ({reason}); expected {source}") from error
    if not isinstance(tensors, Mapping):
        raise InputError(f"{path} holds a {type(tensors).__name__}, not named tensors; expected {source}")
    return tensors


def _copy(target: Tensor, tensors: Mapping[str, Tensor], name: str, path: str | Path, source: str) -> None:
    found = tensors.get(name)
    if not isinstance(found, Tensor):
        raise InputError(f"{path} has no tensor {name}; expected {source}")
    if found.shape != target.shape:
        raise InputError(
            f"{name} in {path} is {tuple(found.shape)}, not {tuple(target.shape)}; expected {source}"
        )
    with torch.no_grad():
        target.copy_(found)
