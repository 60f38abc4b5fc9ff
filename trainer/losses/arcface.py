"""ArcFace IR-SE50: the identity network that pSp trains with (arXiv:1801.07698).

Its lower part is the encoder's own backbone, so an encoder can start from the same file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from psp_rt.errors import InputError
from trainer.losses import weight_files
from trainer.networks import Encoder
from trainer.networks.backbone import input_layer, residual_body

SOURCE = (
    "model_ir_se50.pth, ArcFace IR-SE50 for 112x112 faces "
    "(https://github.com/TreB1eN/InsightFace_Pytorch; pixel2style2pixel links a copy)"
)
WIDTHS, DEPTHS = (64, 128, 256, 512), (3, 4, 14, 3)


class ArcFace(nn.Module):
    """Faces [N, 3, 112, 112] in [-1, 1] -> embeddings [N, 512], not yet of unit length."""

    def __init__(
        self,
        widths: tuple[int, int, int, int] = WIDTHS,
        depths: tuple[int, int, int, int] = DEPTHS,
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


def start_encoder(encoder: Encoder, path: Path) -> None:
    """Copy the backbone of an ArcFace file into an encoder.

    The first layer is left as drawn where the encoder reads something else than RGB.
    """
    tensors = weight_files.read(path, source=SOURCE)
    if "input_layer.0.weight" not in tensors:
        raise InputError(f"{path} has no tensor input_layer.0.weight; expected {SOURCE}")
    _check_sizes(encoder, tensors, path)
    weight_files.fill(encoder.body, _below(tensors, "body."), path, source=SOURCE)
    if encoder.config.input_channels == 3:
        weight_files.fill(encoder.input_layer, _below(tensors, "input_layer."), path, source=SOURCE)


def _check_sizes(encoder: Encoder, tensors: Mapping[str, Any], path: Path) -> None:
    blocks = {name.split(".")[1] for name in tensors if name.startswith("body.")}
    if len(blocks) != len(encoder.body) or encoder.config.widths != WIDTHS:
        raise InputError(
            f"the backbone in {path} has {len(blocks)} blocks, the encoder {len(encoder.body)} of widths "
            f"{encoder.config.widths}; IR-SE50 needs widths {WIDTHS} and depths {DEPTHS}"
        )


def _below(tensors: Mapping[str, Any], start: str) -> dict[str, Any]:
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
