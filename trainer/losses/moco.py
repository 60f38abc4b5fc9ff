"""Similarity of pictures of any domain, by the features of a ResNet-50 trained with MoCo (arXiv:2003.04297).

It replaces the identity loss where there are no faces (e4e, arXiv:2102.02766, section 4).
"""

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from psp_rt.errors import InputError
from trainer.losses import weight_files

SOURCE = (
    "moco_v2_800ep_pretrain.pth.tar (https://github.com/facebookresearch/moco) "
    "or torchvision's ResNet-50 weights (https://download.pytorch.org/models/resnet50-11ad3fa6.pth)"
)
SIZE = 224
PREFIX = "module.encoder_q."


class Block(nn.Module):
    """Bottleneck block of ResNet-50, its stride in the 3x3 convolution (arXiv:1512.03385)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + self.downsample(x))


class ResNet50(nn.Module):
    """Pictures [N, 3, H, W] -> features [N, 2048], in torchvision's tensor names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        below = 64
        for stage, (width, count) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True), start=1):
            blocks = []
            for block in range(count):
                blocks.append(Block(below, width, 2 if stage > 1 and block == 0 else 1))
                below = 4 * width
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), kernel_size=3, stride=2, padding=1)
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return x.mean(dim=(2, 3))


class Moco(nn.Module):
    """Compares pictures by their MoCo features."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: str | Path) -> "Moco":
        """Load MoCo's own file, or a plain ResNet-50."""
        content = weight_files.read(path, source=SOURCE)
        tensors: Any = content.get("state_dict", content)
        if any(name.startswith(PREFIX) for name in tensors):
            tensors = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
        elif "layer4.2.conv3.weight" not in tensors:
            raise InputError(f"{path} has no tensor layer4.2.conv3.weight; expected {SOURCE}")
        network = ResNet50()
        weight_files.fill(network, tensors, path, source=SOURCE)
        return cls(network)

    def train(self, mode: bool = True) -> "Moco":
        """Stay in evaluation mode, whose statistics are those of its own training."""
        return super().train(False)

    def embed(self, images: Tensor) -> Tensor:
        """Return features [N, 2048] of unit length of RGB images [N, 3, S, S] in [-1, 1]."""
        x = F.interpolate(images.float(), size=SIZE)  # nearest and not normalized, as in pSp's own training
        return F.normalize(self.network(x).float(), dim=1)
