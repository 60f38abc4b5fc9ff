"""A discriminator on the feature maps of a pretrained network.

Projected GAN (A. Sauer et al., arXiv:2111.01007): small heads score the maps of a frozen network, one
head per map. They learn in thousands of pictures what a discriminator of pixels learns in hundreds of
thousands. LPIPS computes these maps anyway, so the heads cost next to nothing.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from trainer.losses.lpips import ALEX, Features


class Head(nn.Module):
    """Score every place of one feature map.

    Spectral normalization (arXiv:1802.05957) keeps scores from being steep, so no gradient penalty is needed.
    """

    def __init__(self, inputs: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.first = spectral_norm(nn.Conv2d(inputs, width, 3, stride, padding=1))
        self.second = spectral_norm(nn.Conv2d(width, width, 3, padding=1))
        self.last = spectral_norm(nn.Conv2d(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores [N, 1, h, w] of a map [N, C, H, W]."""
        x = F.leaky_relu(self.first(x), 0.2)
        x = F.leaky_relu(self.second(x), 0.2)
        scores: Tensor = self.last(x)
        return scores


class FeatureDiscriminator(nn.Module):
    """Tell photos from pictures by the feature maps of LPIPS's network.

    Args:
        width: Channels of each head.
        network: Whose maps they score.
    """

    spread: Tensor

    def __init__(self, width: int, network: Features = ALEX) -> None:
        super().__init__()
        channels = [network.layers[tap][1] for tap in network.taps]
        self.heads = nn.ModuleList(
            [Head(count, width, stride=1 if number else 2) for number, count in enumerate(channels)]
        )
        self.register_buffer("spread", torch.ones(len(channels)))

    @torch.no_grad()
    def measure(self, maps: Sequence[Tensor]) -> None:
        """From now on divide maps by the root mean square of these: heads are as steep as their input."""
        self.spread.copy_(torch.stack([part.float().square().mean().sqrt() for part in maps]))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the scores [N, 1, h, w] of each of the maps [N, C, H, W]; above 0 is a photo."""
        return [head(part / spread) for head, part, spread in zip(self.heads, maps, self.spread, strict=True)]


def discriminator_loss(real_scores: Sequence[Tensor], fake_scores: Sequence[Tensor]) -> Tensor:
    """Return the hinge loss (arXiv:1705.02894): photos should score above 1, pictures below -1."""
    losses = [
        F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        for real, fake in zip(real_scores, fake_scores, strict=True)
    ]
    return torch.stack(losses).mean()


def mean_score(scores: Sequence[Tensor]) -> Tensor:
    """Return the mean over places and pictures, with equal weight for every map."""
    return torch.stack([part.float().mean() for part in scores]).mean()
