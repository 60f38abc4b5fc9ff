"""Encoders: picture -> W+ code (pSp, arXiv:2008.00951; e4e, arXiv:2102.02766), and the whole pSp model."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks.backbone import input_layer, residual_body
from trainer.networks.generator import Generator, Noise
from trainer.networks.layers import EqualLinear

EncoderKind = Literal["psp", "e4e", "w", "naive_w+"]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Sizes of an encoder; the defaults are the official model's.

    Args:
        kind: ``psp`` (feature pyramid), ``e4e`` (the same tensors, offsets to the first style),
            ``w`` (one style for all rows) or ``naive_w+`` (all rows from the last feature map).
        num_styles: Rows L of the code.
        input_channels: 3 for RGB, 1 for sketches, the number of labels for one-hot label maps.
        input_height: Input pixels; the feature pyramid needs a multiple of 16.
        input_width: Likewise.
        style_dim: Length D of one row.
        widths: Channels of the four stages of the backbone.
        depths: Blocks of the four stages of the backbone.
        head_width: Channels inside the map2style heads.
        head_side: Longer side of the input that the heads are built for; None for the input's own. A head for
            256 pixels leaves one pixel of a smaller input, too.
    """

    kind: EncoderKind = "psp"
    num_styles: int = 18
    input_channels: int = 3
    input_height: int = 256
    input_width: int = 256
    style_dim: int = 512
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    depths: tuple[int, int, int, int] = (3, 4, 14, 3)
    head_width: int = 512
    head_side: int | None = None

    def __post_init__(self) -> None:
        if self.input_height % 16 or self.input_width % 16:
            raise ValueError(
                f"input must be a multiple of 16 on both sides, got {self.input_height}x{self.input_width}"
            )
        if self.head_side is not None and self.head_side < max(self.input_height, self.input_width):
            raise ValueError(
                f"heads for {self.head_side} pixels leave more than one pixel of an input of "
                f"{self.input_height}x{self.input_width}"
            )


class MapToStyle(nn.Module):
    """One head: strided convolutions down to a point, then a linear layer (pSp, figure 2)."""

    def __init__(self, inputs: int, config: EncoderConfig, *, side: int) -> None:
        """Build a head for maps whose longer side has `side` pixels."""
        super().__init__()
        width, layers = config.head_width, []
        below = inputs
        for _ in range((side - 1).bit_length()):
            layers += [nn.Conv2d(below, width, 3, 2, 1), nn.LeakyReLU(0.01)]
            below = width
        self.convs = nn.Sequential(*layers)
        self.linear = EqualLinear(width, config.style_dim)

    def forward(self, x: Tensor) -> Tensor:
        style: Tensor = self.linear(self.convs(x).flatten(1))
        return style


class Encoder(nn.Module):
    """The common part of all encoders, the backbone. `create` builds the encoder of a configuration."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.input_layer = input_layer(config.input_channels, config.widths[0])
        self.body = residual_body(config.widths, config.depths)

    @staticmethod
    def create(config: EncoderConfig) -> "Encoder":
        """Build the encoder of a configuration."""
        kinds: dict[str, type[Encoder]] = {
            "psp": PyramidEncoder,
            "e4e": OffsetEncoder,
            "w": SingleStyleEncoder,
            "naive_w+": LastLayerEncoder,
        }
        return kinds[config.kind](config)

    def forward(self, images: Tensor) -> Tensor:
        """Encode [N, C, H, W] into codes [N, L, D], relative to the latent average."""
        raise NotImplementedError

    def last_map(self, images: Tensor) -> Tensor:
        features: Tensor = self.body(self.input_layer(images))
        return features


class PyramidEncoder(Encoder):
    """pSp: heads on three scales of a feature pyramid (section 3 of the paper).

    Rows 0-2 (coarse) read the map at 1/16, rows 3-6 (middle) at 1/8, the rest (fine) at 1/4.
    """

    COARSE, MIDDLE = 3, 7

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        width = config.widths[3]
        side = config.head_side or max(config.input_height, config.input_width)
        self.styles = nn.ModuleList()
        for row in range(config.num_styles):
            divisor = 16 if row < self.COARSE else 8 if row < self.MIDDLE else 4
            self.styles.append(MapToStyle(width, config, side=side // divisor))
        self.latlayer1 = nn.Conv2d(config.widths[2], width, 1)
        self.latlayer2 = nn.Conv2d(config.widths[1], width, 1)

    def pyramid(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the coarse, middle and fine maps, at 1/16, 1/8 and 1/4 of the input."""
        x = self.input_layer(images)
        taps = []
        last_of_stage = [count - 1 for count in accumulate(self.config.depths)]
        for index, block in enumerate(self.body):
            x = block(x)
            if index in last_of_stage:
                taps.append(x)
        _, fine, middle, coarse = taps
        middle = upsample_add(coarse, self.latlayer1(middle))
        return coarse, middle, upsample_add(middle, self.latlayer2(fine))

    def rows(self, images: Tensor) -> list[Tensor]:
        """Return the output of every head, L times [N, D]."""
        coarse, middle, fine = self.pyramid(images)
        maps = [coarse if row < self.COARSE else middle if row < self.MIDDLE else fine
                for row in range(self.config.num_styles)]  # fmt: skip
        return [head(features) for head, features in zip(self.styles, maps, strict=True)]

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack(self.rows(images), dim=1)


class OffsetEncoder(PyramidEncoder):
    """e4e: the first head gives a style for all rows, the others offsets to it (arXiv:2102.02766)."""

    def forward(self, images: Tensor) -> Tensor:
        first, *offsets = self.rows(images)
        return torch.stack([first] + [first + offset for offset in offsets], dim=1)


class SingleStyleEncoder(Encoder):
    """W encoder, an ablation of the pSp paper (section 4.1): one style, repeated to all rows."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.linear = EqualLinear(config.widths[3], config.style_dim)

    def forward(self, images: Tensor) -> Tensor:
        style = self.linear(self.last_map(images).mean(dim=(2, 3)))
        return style[:, None].expand(-1, self.config.num_styles, -1)


class LastLayerEncoder(Encoder):
    """Naive W+ encoder, an ablation of the pSp paper (section 4.1): all rows from the last map."""

    POOLED = 7

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        width = config.widths[3]
        self.output_layer_2 = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.AdaptiveAvgPool2d((self.POOLED, self.POOLED)),
            nn.Flatten(),
            nn.Linear(width * self.POOLED**2, config.head_width),
        )
        self.linear = EqualLinear(config.head_width, config.style_dim * config.num_styles)

    def forward(self, images: Tensor) -> Tensor:
        codes: Tensor = self.linear(self.output_layer_2(self.last_map(images)))
        return codes.reshape(-1, self.config.num_styles, self.config.style_dim)


class Translation(nn.Module):
    """The pSp model: ``generator(encoder(image) + latent_avg)`` (equation 1 of arXiv:2008.00951).

    Args:
        encoder: Picture to code.
        generator: Code to picture.
        latent_avg: Added to every code: [L, D], [1, D], [D], or None for a model trained without it.
    """

    latent_avg: Tensor | None

    def __init__(self, encoder: Encoder, generator: Generator, latent_avg: Tensor | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.generator = generator
        self.register_buffer("latent_avg", latent_avg)

    def encode(self, images: Tensor) -> Tensor:
        """Return codes [N, L, D] of network inputs [N, C, H, W]."""
        codes: Tensor = self.encoder(images)
        return codes if self.latent_avg is None else codes + self.latent_avg

    def forward(self, images: Tensor, *, noise: Noise = "const") -> Tensor:
        """Translate network inputs [N, C, H, W] into pictures [N, 3, S, S]."""
        pictures: Tensor = self.generator(self.encode(images), noise=noise)
        return pictures


def upsample_add(below: Tensor, lateral: Tensor) -> Tensor:
    """Resize a coarser map to the lateral one and add (align_corners, as the official weights need)."""
    return F.interpolate(below, size=lateral.shape[2:], mode="bilinear", align_corners=True) + lateral


def normed_convolutions(encoder: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Yield each convolution with the batch norm that follows it: an export folds the two into one."""
    for module in encoder.modules():
        if isinstance(module, nn.Sequential):
            for layer, following in pairwise(module):
                if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
                    yield layer, following


def draw_head_weights(encoder: Encoder) -> None:
    """Initialize heads and lateral layers so that they keep the variance (He).

    They have no normalization, and PyTorch's default shrinks activations by 2.4 per layer: after five
    layers all inputs have the same code, and 12,000 images of training did not change that.
    """
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Conv2d) and name.startswith(("styles.", "latlayer")):
            nn.init.kaiming_normal_(module.weight, a=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
