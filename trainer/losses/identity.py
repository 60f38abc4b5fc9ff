"""How much two pictures of a face look like one person: 1 - cosine of their embeddings (pSp, equation 4).

Faces are aligned as in FFHQ, so the crop that an identity network was trained on is a fixed box.
ArcFace's is the public code's. MobileFaceNet's maps FFHQ's mean landmarks onto the five points of
its training crops (least squares, one scale); on portraits of people photographed twice, the
similarity is 0.81 for the same person and 0.03 for different ones. CurricularFace's box follows from
the same points: its training crops have 8 pixels more on each side.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from psp_rt.errors import InputError
from trainer.losses import arcface, curricularface, mobilefacenet, weight_files

SOURCE = f"{arcface.SOURCE}, {curricularface.SOURCE}, or {mobilefacenet.SOURCE}"


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
    """What an identity network takes."""

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
    """Compare faces by an identity network."""

    def __init__(self, network: nn.Module, crop: Crop) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.crop = crop

    @classmethod
    def load(cls, path: str | Path) -> "Identity":
        """Build it from a file of ArcFace IR-SE50, CurricularFace IR-101 or MobileFaceNet.

        The tensors' names say which it is.
        """
        content = weight_files.read(path, source=SOURCE)
        network: nn.Module
        if "net_state_dict" in content:
            network, crop, source = mobilefacenet.MobileFaceNet(), MOBILEFACENET, mobilefacenet.SOURCE
            content = content["net_state_dict"]
        elif "body.48.res_layer.4.weight" in content and "body.0.res_layer.5.fc1.weight" not in content:
            network, crop, source = curricularface.CurricularFace(), CURRICULARFACE, curricularface.SOURCE
            weight_files.refuse_surplus(network, content, path, source=source)
        elif "input_layer.0.weight" in content:
            network, crop, source = arcface.ArcFace(), ARCFACE, arcface.SOURCE
        else:
            raise InputError(f"{path} holds no identity network that is known; expected {SOURCE}")
        weight_files.fill(network, content, path, source=source)
        return cls(network, crop)

    def train(self, mode: bool = True) -> "Identity":
        """Stay in evaluation mode: its statistics are those of its own training."""
        return super().train(False)

    def embed(self, images: Tensor) -> Tensor:
        """Return embeddings [N, E] of unit length of RGB images [N, 3, S, S] in [-1, 1]."""
        return F.normalize(self.network(self.crop.take(images)).float(), dim=1)

    def similarity(self, images: Tensor, others: Tensor) -> Tensor:
        """Return the cosine [N], 1 for the same face."""
        return (self.embed(images) * self.embed(others)).sum(dim=1)
