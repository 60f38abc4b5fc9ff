"""The generator in its original formulation, which ours has to beat.

The public code folds the style into the weights, one set of weights for each picture, and runs them
as one grouped convolution (StyleGAN2, arXiv:1912.04958, equations 1 and 3). `trainer.networks`
scales the activations instead.
"""

import copy
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks import Generator
from trainer.networks.generator import ModulatedConv
from trainer.networks.layers import fir_filter


class GroupedConv(nn.Module):
    """Modulated convolution as the public code has it, on the tensors of a `ModulatedConv`."""

    def __init__(self, conv: ModulatedConv) -> None:
        super().__init__()
        self.weight = conv.weight
        self.modulation = conv.modulation
        self.demodulate = conv.demodulate
        self.padding = conv.padding
        self.blur = conv.blur if conv.up else None

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Convolve [N, I, H, W] under a style [N, D]; the result is [N, O, H, W] or twice as large."""
        weight = self.sample_weights(style)
        count, outputs, inputs, *kernel = weight.shape
        # The public code keeps to NCHW; the start of ours is channels-last.
        x = x.contiguous().view(1, count * inputs, *x.shape[2:])
        if self.blur is None:
            x = F.conv2d(x, weight.view(-1, inputs, *kernel), padding=self.padding, groups=count)
            return x.view(count, outputs, *x.shape[2:])
        weight = weight.transpose(1, 2).reshape(count * inputs, outputs, *kernel)
        x = F.conv_transpose2d(x, weight, stride=2, groups=count)
        x = x.view(count, outputs, *x.shape[2:])
        return fir_filter(x, self.blur.kernel, padding=(1, 1))

    def sample_weights(self, style: Tensor) -> Tensor:
        """Return the weights of each picture, [N, O, I, k, k]."""
        scale = self.weight[0, 0].numel() ** -0.5
        weight = scale * self.weight * self.modulation(style)[:, None, :, None, None]
        if not self.demodulate:
            return weight
        demodulation = torch.rsqrt(weight.pow(2).sum((2, 3, 4)) + 1e-8)
        return weight * demodulation[:, :, None, None, None]


def in_original_form(generator: Generator) -> Generator:
    """Return the same generator with grouped convolutions; it shares every tensor with the given one."""
    tensors = {id(tensor): tensor for tensor in chain(generator.parameters(), generator.buffers())}
    twin = copy.deepcopy(generator, tensors)  # a copy of the modules; deepcopy takes the tensors as done
    for module in list(twin.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ModulatedConv):
                setattr(module, name, GroupedConv(child))
    return twin
