"""CurricularFace IR-101: the identity network that the paper measures with (arXiv:2004.00288).

It is another network than the loss uses, so that the similarity is no measure of the loss itself
(pSp, section 4.1). Tensor names are those of the public file (`CurricularFace_Backbone.pth`).
"""

from torch import Tensor, nn

from trainer.networks.backbone import PlainBottleneck, input_layer, residual_body

SOURCE = (
    "CurricularFace_Backbone.pth, CurricularFace IR-101 for 112x112 faces "
    "(https://github.com/HuangYG123/CurricularFace; pixel2style2pixel links a copy)"
)
WIDTHS, DEPTHS = (64, 128, 256, 512), (3, 13, 30, 3)


class CurricularFace(nn.Module):
    """Faces [N, 3, 112, 112] in [-1, 1] -> embeddings [N, 512], not yet of unit length."""

    def __init__(self, *, size: int = 112, outputs: int = 512) -> None:
        super().__init__()
        self.input_layer = input_layer(3, WIDTHS[0])
        self.body = residual_body(WIDTHS, DEPTHS, block=PlainBottleneck)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(WIDTHS[3]),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(WIDTHS[3] * (size // 16) ** 2, outputs),
            nn.BatchNorm1d(outputs, affine=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.output_layer(self.body(self.input_layer(x)))
