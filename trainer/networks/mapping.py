"""A mapping network that draws styles like given ones, set rather than trained.

Reconstruction alone never runs the mapping network, but what it should do is known: turn a standard normal z
into the normal distribution of the encoder's styles. That is an affine map, which a mapping network of
two or more layers can compute exactly.
"""

import torch
from torch import Tensor

from psp_rt.errors import InputError
from trainer.networks import Generator
from trainer.networks.layers import EqualLinear, pixel_norm

SLOPE, GAIN = 0.2, 2**0.5  # of the leaky ReLU behind every layer


@torch.no_grad()
def set_mapping(generator: Generator, styles: Tensor) -> float:
    """Make the mapping network draw from the normal distribution of styles [N, D].

    The first layers pass their input on, shifted to where the leaky ReLU f is linear. The last but one
    computes the negated style -t, so that its leaky ReLU gives f(-t), and -f(-t) is the inverse of f up to a
    factor: the leaky ReLU of the last layer then undoes it.

    Returns:
        The root mean square difference from the affine map, relative to the spread of the styles.

    Raises:
        InputError: The mapping network has one layer or none.
    """
    layers = [layer for layer in generator.style if isinstance(layer, EqualLinear)]
    check_depth(len(layers))
    device, size = styles.device, styles.shape[1]
    mean, spread = styles.double().mean(dim=0), _root(styles.double().T.cov())
    unit, zeros = torch.eye(size, device=device).double(), torch.zeros(size, device=device).double()

    shift = zeros.new_zeros(())
    for layer in layers[:-2]:
        _set(layer, unit / GAIN, (size**0.5 - shift).expand(size) / GAIN)
        shift = zeros.new_tensor(size**0.5)  # no z is longer, once normalized to unit mean square
    _set(layers[-2], -spread, spread @ shift.expand(size) - mean)
    _set(layers[-1], unit / (-SLOPE * GAIN**2), zeros)

    z = torch.randn(1000, size, generator=torch.Generator().manual_seed(0)).to(device)
    wanted = mean + pixel_norm(z).double() @ spread.T
    error = (generator.mapping(z).double() - wanted).square().mean()
    return float((error / styles.double().var(dim=0).mean().clamp_min(1e-12)).sqrt())


def check_depth(layers: int) -> None:
    """Check that a mapping network can compute an affine map."""
    if layers < 2:
        raise InputError(
            f"the generator has {layers} mapping layers; joint training sets the mapping network, which "
            "needs at least 2: choose mapping_layers=2 or more"
        )


def _root(covariance: Tensor) -> Tensor:
    """Return A with A @ A.T equal to a covariance, which may be singular: few photos, many dimensions."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt()


def _set(layer: EqualLinear, weight: Tensor, bias: Tensor) -> None:
    layer.weight.copy_(weight / layer.scale)
    layer.bias.copy_(bias / layer.lr_mul)
