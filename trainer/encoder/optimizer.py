"""The optimiser that pSp is trained with: Ranger.

Ranger is rectified Adam (arXiv:1908.03265) whose weights are pulled back half-way every six steps
(Lookahead, arXiv:1907.08610), with gradients centred for each output (arXiv:2004.01461).
"""

from collections.abc import Iterable
from typing import Literal

import torch
from pytorch_optimizer import Ranger
from torch import nn


def create(
    name: Literal["ranger", "adam"], parameters: Iterable[nn.Parameter], *, learning_rate: float
) -> torch.optim.Optimizer:
    """Return an optimiser with the settings of the public pSp code."""
    parameters = list(parameters)
    if name == "adam":
        return torch.optim.Adam(parameters, lr=learning_rate)
    return Ranger(
        parameters,
        lr=learning_rate,
        betas=(0.95, 0.999),
        eps=1e-5,
        alpha=0.5,
        k=6,
        n_sma_threshold=5,
        use_gc=True,
        # Without it the library's first five steps go up the gradient (measured with version 4.1.0).
        degenerated_to_sgd=True,
    )
