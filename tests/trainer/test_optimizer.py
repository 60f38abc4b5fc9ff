import math

import pytest
import torch
from torch import nn

from trainer.encoder.run import create_optimizer


def reference_ranger(weights, gradients, *, learning_rate):
    """Follow one weight through the equations of RAdam, Lookahead and gradient centralisation."""
    beta1, beta2, eps = 0.95, 0.999, 1e-5
    weight, slow = weights.double(), weights.double()
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    longest = 2 / (1 - beta2) - 1
    for step, gradient in enumerate(gradients, start=1):
        g = gradient.double()
        if g.ndim > 1:
            g = g - g.mean(dim=tuple(range(1, g.ndim)), keepdim=True)
        mean = beta1 * mean + (1 - beta1) * g
        square = beta2 * square + (1 - beta2) * g**2
        unbiased = mean / (1 - beta1**step)
        length = longest - 2 * step * beta2**step / (1 - beta2**step)
        if length > 5:
            rectification = math.sqrt(
                (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            )
            weight = weight - learning_rate * rectification * math.sqrt(1 - beta2**step) * unbiased / (
                square.sqrt() + eps
            )
        else:
            weight = weight - learning_rate * unbiased
        if step % 6 == 0:
            slow = slow + 0.5 * (weight - slow)
            weight = slow
    return weight


@pytest.mark.parametrize("shape", [(5,), (4, 3), (4, 3, 2, 2)])
def test_ranger_follows_its_equations_for_twenty_steps(shape):
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), [torch.randn(shape) for _ in range(20)]
    parameter = nn.Parameter(start.clone())
    ranger = create_optimizer("ranger", [parameter], learning_rate=1e-2)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        ranger.step()
    expected = reference_ranger(start, gradients, learning_rate=1e-2)
    assert (parameter - start).abs().max() > 1e-2
    torch.testing.assert_close(parameter.data.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["ranger", "adam"])
def test_every_step_goes_down_a_slope(name):
    parameter = nn.Parameter(torch.ones(1))
    descent = create_optimizer(name, [parameter], learning_rate=1e-2)
    before = 1.0
    for _ in range(5):
        parameter.grad = torch.ones(1)
        descent.step()
        assert parameter.item() < before
        before = parameter.item()


def test_an_optimizer_goes_on_exactly_from_its_state():
    torch.manual_seed(0)
    gradients = [torch.randn(4, 3) for _ in range(14)]

    def run(parameter, ranger, steps):
        for gradient in steps:
            parameter.grad = gradient.clone()
            ranger.step()

    whole, half, rest = (nn.Parameter(torch.ones(4, 3)) for _ in range(3))
    run(whole, create_optimizer("ranger", [whole], learning_rate=1e-2), gradients)
    first = create_optimizer("ranger", [half], learning_rate=1e-2)
    run(half, first, gradients[:8])  # between two pulls of Lookahead
    rest.data.copy_(half.data)
    second = create_optimizer("ranger", [rest], learning_rate=1e-2)
    second.load_state_dict(first.state_dict())
    run(rest, second, gradients[8:])
    assert torch.equal(rest, whole)
