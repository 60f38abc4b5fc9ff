"""Table 1 of the paper (arXiv:2008.00951): StyleGAN inversion on CelebA-HQ, quoted."""

from dataclasses import dataclass

NOTE = (
    "quoted from Table 1 of the paper: other data (CelebA-HQ), another card (Tesla P40) and "
    "CurricularFace on faces aligned by MTCNN; for orientation, not for ranking"
)


@dataclass(frozen=True, kw_only=True)
class Quoted:
    """One row of the paper's table."""

    method: str
    similarity: float
    lpips: float
    mse: float
    seconds: float


TABLE_1 = (
    Quoted(method="ALAE", similarity=0.06, lpips=0.32, mse=0.15, seconds=0.207),
    Quoted(method="IDInvert", similarity=0.18, lpips=0.22, mse=0.06, seconds=0.032),
    Quoted(method="W", similarity=0.09, lpips=0.31, mse=0.11, seconds=0.063),
    Quoted(method="naive W+", similarity=0.48, lpips=0.23, mse=0.06, seconds=0.063),
    Quoted(method="pSp", similarity=0.58, lpips=0.19, mse=0.04, seconds=0.106),
)
