"""The losses of StyleGAN2 (arXiv:1912.04958, section 3.2 and appendix B).

The two regularisations differentiate a gradient once more, so they are computed in full precision
and only every few steps; their caller multiplies them by that interval.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def discriminator_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Return the logistic loss: real pictures should score above 0, generated ones below."""
    return F.softplus(-real_scores).mean() + F.softplus(fake_scores).mean()


def generator_loss(fake_scores: Tensor) -> Tensor:
    """Return the non-saturating loss: generated pictures should score above 0."""
    return F.softplus(-fake_scores).mean()


def gradient_penalty(discriminator: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    """Return the mean squared gradient of the scores by the pictures [N, C, H, W] (R1, arXiv:1801.04406)."""
    pictures = pictures.detach().requires_grad_(True)
    (gradients,) = torch.autograd.grad(discriminator(pictures).sum(), pictures, create_graph=True)
    return gradients.square().sum(dim=(1, 2, 3)).mean()


def path_lengths(pictures: Tensor, codes: Tensor, *, directions: Tensor) -> Tensor:
    """Return how far pictures [N, C, S, S] move in random directions when codes [N, L, D] do, [N].

    Args:
        pictures: Made of the codes, with a graph between them.
        codes: Latent codes.
        directions: Standard normal, in the pictures' shape.
    """
    side = pictures.shape[-1]
    projected = (pictures * directions).sum() / side  # 1 / sqrt(H * W), so that sizes compare
    (gradients,) = torch.autograd.grad(projected, codes, create_graph=True)
    return gradients.square().sum(dim=2).mean(dim=1).sqrt()
