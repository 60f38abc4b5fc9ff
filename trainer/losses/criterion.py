"""The weighted sum of losses that an encoder learns from (pSp, section 3.1)."""

from dataclasses import dataclass, fields
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psp_rt.errors import InputError
from trainer.losses import identity as identities
from trainer.losses import lpips as perceptual
from trainer.losses import moco as mocos
from trainer.losses.identity import INNER_FACE, Identity
from trainer.losses.lpips import Lpips
from trainer.losses.moco import Moco

LpipsNetwork = Literal["alex", "vgg"]


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """How much each loss counts; 0 leaves it out.

    Args:
        l2: Mean squared difference.
        lpips: Perceptual distance.
        identity: 1 - cosine of face embeddings.
        moco: 1 - cosine of features, for domains other than faces.
        w_norm: Distance of the code from the mean style.
        inner_l2: Mean squared difference inside the face.
        inner_lpips: Perceptual distance inside the face.
    """

    l2: float = 1.0
    lpips: float = 0.8
    identity: float = 0.0
    moco: float = 0.0
    w_norm: float = 0.0
    inner_l2: float = 0.0
    inner_lpips: float = 0.0

    def __post_init__(self) -> None:
        for each in fields(self):
            if not 0 <= getattr(self, each.name) < float("inf"):
                raise InputError(
                    f"the weight of the loss {each.name} is {getattr(self, each.name)}, expected 0 or more"
                )


def needed_files(weights: LossWeights, lpips_network: LpipsNetwork) -> dict[str, str]:
    """Return the options for the files of the losses in use, each with where to get such a file."""
    counting = [_files(each.name, lpips_network) for each in fields(weights) if getattr(weights, each.name)]
    return {option: source for files in counting for option, source in files.items()}


def _files(loss: str, lpips_network: LpipsNetwork) -> dict[str, str]:
    """Return the same for one loss."""
    features = perceptual.ALEX if lpips_network == "alex" else perceptual.VGG
    lpips = {"--lpips-features": features.source, "--lpips-heads": features.heads_source}
    known = {"lpips": lpips, "inner_lpips": lpips, "identity": {"--identity": identities.SOURCE}}
    return (known | {"moco": {"--moco": mocos.SOURCE}}).get(loss, {})


class Criterion(nn.Module):
    """Computes every loss in use, and their weighted sum."""

    def __init__(
        self,
        weights: LossWeights,
        *,
        lpips: Lpips | None = None,
        identity: Identity | None = None,
        moco: Moco | None = None,
        lpips_network: LpipsNetwork = "alex",
    ) -> None:
        super().__init__()
        self.weights = weights
        self.lpips, self.identity, self.moco = lpips, identity, moco
        networks = {"lpips": lpips, "inner_lpips": lpips, "identity": identity, "moco": moco}
        for name, network in networks.items():
            if getattr(weights, name) and network is None:
                files = _files(name, lpips_network).items()
                listed = " and ".join(f"{option} ({source})" for option, source in files)
                raise InputError(
                    f"the loss {name} has the weight {getattr(weights, name)} but no file: pass "
                    f"{listed}, or leave the loss out with --set losses.{name}=0"
                )

    def forward(self, images: Tensor, targets: Tensor, offsets: Tensor) -> dict[str, Tensor]:
        """Return the losses by name, and their weighted sum as ``total``.

        Args:
            images: The model's pictures, RGB [N, 3, S, S] in [-1, 1].
            targets: The pictures wanted.
            offsets: Its codes minus the mean style, [N, L, D].
        """
        weights, losses = self.weights, dict[str, Tensor]()
        if weights.l2:
            losses["l2"] = F.mse_loss(images, targets)
        if weights.inner_l2:
            losses["inner_l2"] = F.mse_loss(INNER_FACE.cut(images), INNER_FACE.cut(targets))
        if weights.lpips and self.lpips:
            losses["lpips"] = perceptual.loss(self.lpips, images, targets)
        if weights.inner_lpips and self.lpips:
            inner = INNER_FACE.cut(images), INNER_FACE.cut(targets)
            losses["inner_lpips"] = perceptual.loss(self.lpips, *inner)
        if weights.identity and self.identity:
            losses["identity"] = _difference(self.identity, images, targets)
        if weights.moco and self.moco:
            losses["moco"] = _difference(self.moco, images, targets)
        if weights.w_norm:
            losses["w_norm"] = w_norm(offsets)
        terms = [getattr(weights, name) * value for name, value in losses.items()]
        losses["total"] = torch.stack(terms).sum() if terms else images.sum() * 0
        return losses


def w_norm(offsets: Tensor) -> Tensor:
    """Return the distance of codes [N, L, D] from the mean style: the mean of their Frobenius norms."""
    return offsets.float().flatten(1).norm(dim=1).mean()


def _difference(network: Identity | Moco, images: Tensor, targets: Tensor) -> Tensor:
    with torch.no_grad():
        wanted = network.embed(targets)
    return 1 - (network.embed(images) * wanted).sum(dim=1).mean()
