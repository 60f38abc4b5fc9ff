"""The running average of a network's weights: what training hands on."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from trainer.networks.encoders import normed_convolutions


def decay(*, images: int, images_seen: int, halflife_images: float = 10e3) -> float:
    """Return how much of the average stays after a step of `images`.

    The half-life counts images, not steps, so it means the same at any batch size. Early on it is
    5 % of what was seen, else the average would remember the first weights, which were drawn.
    """
    halflife = min(halflife_images, 0.05 * images_seen)
    return float(0.5 ** (images / halflife)) if halflife > 0 else 0.0


@torch.no_grad()
def update(
    average: nn.Module, network: nn.Module, *, images: int, images_seen: int, halflife_images: float = 10e3
) -> None:
    """Move an average towards its network after a step of `images`, the last of `images_seen`.

    Not the buffers: statistics of batch normalisation fit only the weights that they were measured
    with. `calibrate` measures those of the average.
    """
    share = 1 - decay(images=images, images_seen=images_seen, halflife_images=halflife_images)
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), share)


@torch.no_grad()
def calibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Measure the statistics that batch normalisation uses outside training, for averaged weights.

    Those of the learning weights do not fit them: with these, nearly all codes came out the same, and
    the held-out error was a third higher.

    Args:
        network: Is left in evaluation mode.
        batches: What it reads in training, [N, C, H, W] each; all count alike.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    network.train()
    for batch in batches:
        network(batch)
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@torch.no_grad()
def spread_statistics(encoder: nn.Module, sources: Tensor) -> None:
    """Let each batch norm after a convolution normalise what comes to it; its own weights undo that.

    What the encoder computes stays the same. A checkpoint recovered from an engine needs it before training,
    which normalises by the statistics of a batch whatever the file says.

    Args:
        encoder: Is left in evaluation mode.
        sources: What it reads in training, [N, C, H, W].
    """

    def spread(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
        slope = norm.weight / (norm.running_var + norm.eps).sqrt()
        norm.bias.add_(slope * (mean - norm.running_mean))
        norm.weight.copy_(slope * (variance + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)

    hooks = [norm.register_forward_pre_hook(spread) for _, norm in normed_convolutions(encoder)]
    encoder.eval()(sources)
    for hook in hooks:
        hook.remove()
