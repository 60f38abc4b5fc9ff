"""The running average of a network's weights, which is what gets exported, and BF16 where it is fast."""

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from trainer.networks.encoders import normed_convolutions

FIRST_BF16_GPU = (8, 0)  # compute capability of Ampere; PyTorch emulates BF16 on older GPUs
BF16_FEATURES = ("avx512_bf16", "amx_bf16", "bf16")  # x86, x86, ARM


def decay(*, images: int, images_seen: int, halflife_images: float = 10e3) -> float:
    """Return how much of the average remains after a step of `images`.

    The half-life counts images, not steps, so it means the same at any batch size. Early on it is 5 % of
    the images seen, or the average would remember the random initial weights.
    """
    halflife = min(halflife_images, 0.05 * images_seen)
    return float(0.5 ** (images / halflife)) if halflife > 0 else 0.0


@torch.no_grad()
def update(
    average: nn.Module, network: nn.Module, *, images: int, images_seen: int, halflife_images: float = 10e3
) -> None:
    """Move an average towards its network after a step of `images`, the last of `images_seen`.

    Buffers are left alone: statistics of batch normalization fit only the weights that they were measured
    with. `calibrate` measures those of the average.
    """
    share = 1 - decay(images=images, images_seen=images_seen, halflife_images=halflife_images)
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), share)


@torch.no_grad()
def calibrate(
    network: nn.Module,
    batches: Iterable[Tensor],
    *,
    seconds: float = float("inf"),
    stop_requested: Callable[[], bool] = lambda: False,
) -> None:
    """Measure the statistics that batch normalization uses outside training, for averaged weights.

    The statistics of the live weights do not fit: with them nearly all codes came out the same, and the
    held-out error was a third higher.

    Args:
        network: Is left in evaluation mode.
        batches: What it reads in training, [N, C, H, W] each; all count alike.
        seconds: Take no further batch after this time.
        stop_requested: Nor when this returns True.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches

    deadline = time.monotonic() + seconds
    network.train()
    for batch in batches:
        network(batch)
        if time.monotonic() > deadline or stop_requested():
            break

    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@torch.no_grad()
def spread_statistics(encoder: nn.Module, sources: Tensor) -> None:
    """Make each batch norm after a convolution normalize its actual input, and adapt its weights in return.

    The encoder computes the same as before. A checkpoint recovered from an engine needs this before
    training, which normalizes by the statistics of a batch whatever the file says.

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


def computes_bf16(device: torch.device) -> bool:
    """Return whether a device has BF16, as far as PyTorch can tell.

    Processors and GPUs without it emulate it: training on such a processor took 2.6 times as long as in
    FP32, which is also more accurate.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # missing in older versions
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= FIRST_BF16_GPU
    if device.type != "cpu" or capabilities is None:
        return True
    found = capabilities()
    return any(found.get(feature) for feature in BF16_FEATURES)


def half_precision(device: torch.device, *, wanted: bool = True) -> torch.autocast:
    """Compute convolutions and products in BF16 where wanted and available; weights stay FP32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and computes_bf16(device))


def precision_notes(device: torch.device, *, wanted: bool = True) -> list[str]:
    """Return a line for the user if BF16 is wanted but not available."""
    if not wanted or computes_bf16(device):
        return []
    what = "GPU" if device.type == "cuda" else "processor"
    return [f"this {what} has no BF16, so the run computes in FP32"]
