"""How similar the faces in two pictures are: 1 - cosine of their embeddings (pSp, equation 4).

Three identity networks are known, under the tensor names of their public files:

    ArcFace IR-SE50         what pSp trains with (arXiv:1801.07698); its body is the encoder's own backbone,
                            so an encoder can start from the same file
    CurricularFace IR-101   what the paper measures with (arXiv:2004.00288, pSp section 4.1)
    MobileFaceNet           a light one, 128 numbers from a 112x96 crop (arXiv:1804.07573)

Faces are aligned as in FFHQ, so the crop that a network was trained on is a fixed box. ArcFace's is that of
the public code. MobileFaceNet's maps FFHQ's mean landmarks onto the five points of its training crops (least
squares, one scale); on portraits of people photographed twice, the similarity is 0.81 for the same person
and 0.03 for different people. CurricularFace's box follows from the same points: its training crops have 8
more pixels on each side.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from psp_rt.errors import InputError
from trainer.losses import weight_files
from trainer.networks import Encoder
from trainer.networks.backbone import PlainBottleneck, input_layer, residual_body

ARCFACE_SOURCE = (
    "model_ir_se50.pth, ArcFace IR-SE50 for 112x112 faces "
    "(https://github.com/TreB1eN/InsightFace_Pytorch; pixel2style2pixel links a copy)"
)
CURRICULARFACE_SOURCE = (
    "CurricularFace_Backbone.pth, CurricularFace IR-101 for 112x112 faces "
    "(https://github.com/HuangYG123/CurricularFace; pixel2style2pixel links a copy)"
)
MOBILEFACENET_SOURCE = (
    "a MobileFaceNet checkpoint (net_state_dict, 128 outputs) "
    "as https://github.com/Xiaoccer/MobileFaceNet_Pytorch makes"
)
SOURCE = f"{ARCFACE_SOURCE}, {CURRICULARFACE_SOURCE}, or {MOBILEFACENET_SOURCE}"
WIDTHS = (64, 128, 256, 512)  # of both IR networks
ARCFACE_DEPTHS, CURRICULARFACE_DEPTHS = (3, 4, 14, 3), (3, 13, 30, 3)

# Expansion, channels, blocks, stride of the first block (table 1 of the MobileFaceNet paper).
STAGES = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))


class Box(NamedTuple):
    """A part of a picture, in pixels at 256x256; the ends are exclusive."""

    top: int
    bottom: int
    left: int
    right: int

    def cut(self, images: Tensor) -> Tensor:
        """Return this part of images [N, C, S, S] of any size."""
        top, bottom, left, right = (round(edge * images.shape[2] / 256) for edge in self)
        return images[:, :, top:bottom, left:right]


INNER_FACE = Box(35, 223, 32, 220)


@dataclass(frozen=True, kw_only=True)
class Crop:
    """The part of a picture that an identity network takes."""

    box: Box
    height: int
    width: int
    scale: float = 1.0  # of values in [-1, 1]

    def take(self, images: Tensor) -> Tensor:
        """Return the faces in images [N, 3, S, S] in the network's size."""
        face = self.box.cut(images.float()) * self.scale
        if min(face.shape[2] / self.height, face.shape[3] / self.width) >= 1:
            return F.adaptive_avg_pool2d(face, (self.height, self.width))  # as the public code does
        return F.interpolate(face, size=(self.height, self.width), mode="bilinear", align_corners=False)


ARCFACE = Crop(box=INNER_FACE, height=112, width=112)
CURRICULARFACE = Crop(box=Box(32, 221, 32, 221), height=112, width=112)
MOBILEFACENET = Crop(box=Box(32, 221, 45, 208), height=112, width=96, scale=127.5 / 128)


class Identity(nn.Module):
    """Compares faces by an identity network."""

    def __init__(self, network: nn.Module, crop: Crop) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.crop = crop

    @classmethod
    def load(cls, path: str | Path) -> "Identity":
        """Load ArcFace IR-SE50, CurricularFace IR-101 or MobileFaceNet, told apart by their tensor names."""
        content = weight_files.read(path, source=SOURCE)
        network: nn.Module
        if "net_state_dict" in content:
            network, crop, source = MobileFaceNet(), MOBILEFACENET, MOBILEFACENET_SOURCE
            content = content["net_state_dict"]
        elif "body.48.res_layer.4.weight" in content and "body.0.res_layer.5.fc1.weight" not in content:
            network, crop, source = CurricularFace(), CURRICULARFACE, CURRICULARFACE_SOURCE
            weight_files.refuse_surplus(network, content, path, source=source)
        elif "input_layer.0.weight" in content:
            network, crop, source = ArcFace(), ARCFACE, ARCFACE_SOURCE
        else:
            raise InputError(f"{path} contains no known identity network; expected {SOURCE}")
        weight_files.fill(network, content, path, source=source)
        return cls(network, crop)

    def train(self, mode: bool = True) -> "Identity":
        """Stay in evaluation mode, whose statistics are those of its own training."""
        return super().train(False)

    def embed(self, images: Tensor) -> Tensor:
        """Return embeddings [N, E] of unit length of RGB images [N, 3, S, S] in [-1, 1]."""
        return F.normalize(self.network(self.crop.take(images)).float(), dim=1)

    def similarity(self, images: Tensor, others: Tensor) -> Tensor:
        """Return the cosine [N], 1 for the same face."""
        return (self.embed(images) * self.embed(others)).sum(dim=1)


def start_encoder(encoder: Encoder, path: Path) -> None:
    """Copy the backbone of an ArcFace file into an encoder.

    The first layer keeps its random weights if the encoder reads something other than RGB.
    """
    tensors = weight_files.read(path, source=ARCFACE_SOURCE)
    if "input_layer.0.weight" not in tensors:
        raise InputError(f"{path} has no tensor input_layer.0.weight; expected {ARCFACE_SOURCE}")
    blocks = {name.split(".")[1] for name in tensors if name.startswith("body.")}
    if len(blocks) != len(encoder.body) or encoder.config.widths != WIDTHS:
        raise InputError(
            f"the backbone in {path} has {len(blocks)} blocks, the encoder {len(encoder.body)} of widths "
            f"{encoder.config.widths}; IR-SE50 needs widths {WIDTHS} and depths {ARCFACE_DEPTHS}"
        )
    weight_files.fill(encoder.body, _below(tensors, "body."), path, source=ARCFACE_SOURCE)
    if encoder.config.input_channels == 3:
        weight_files.fill(encoder.input_layer, _below(tensors, "input_layer."), path, source=ARCFACE_SOURCE)


def _below(tensors: Mapping[str, Any], start: str) -> dict[str, Any]:
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


class ArcFace(nn.Module):
    """Faces [N, 3, 112, 112] in [-1, 1] -> embeddings [N, 512], not yet of unit length."""

    def __init__(
        self,
        widths: tuple[int, int, int, int] = WIDTHS,
        depths: tuple[int, int, int, int] = ARCFACE_DEPTHS,
        *,
        size: int = 112,
        outputs: int = 512,
    ) -> None:
        super().__init__()
        self.input_layer = input_layer(3, widths[0])
        self.body = residual_body(widths, depths)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(widths[3]),
            nn.Dropout(0.6),
            nn.Flatten(),
            nn.Linear(widths[3] * (size // 16) ** 2, outputs),
            nn.BatchNorm1d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.output_layer(self.body(self.input_layer(x)))


class CurricularFace(nn.Module):
    """Faces [N, 3, 112, 112] in [-1, 1] -> embeddings [N, 512], not yet of unit length."""

    def __init__(self, *, size: int = 112, outputs: int = 512) -> None:
        super().__init__()
        self.input_layer = input_layer(3, WIDTHS[0])
        self.body = residual_body(WIDTHS, CURRICULARFACE_DEPTHS, block=PlainBottleneck)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(WIDTHS[3]),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(WIDTHS[3] * (size // 16) ** 2, outputs),
            nn.BatchNorm1d(outputs, affine=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.output_layer(self.body(self.input_layer(x)))


class ConvBlock(nn.Module):
    """Convolution, batch normalization and, unless linear, PReLU."""

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


class MobileBottleneck(nn.Module):
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
                blocks.append(MobileBottleneck(below, channels, stride=first, expansion=expansion))
                below = channels
        self.blocks = nn.Sequential(*blocks)
        self.conv2 = ConvBlock(128, 512, 1)
        self.linear7 = ConvBlock(512, 512, (7, 6), groups=512, linear=True)
        self.linear1 = ConvBlock(512, 128, 1, linear=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.dw_conv1(self.conv1(x)))
        return self.linear1(self.linear7(self.conv2(x))).flatten(1)
