"""Models with drawn weights, in official sizes and tiny, and the generator in its original formulation."""

import copy
from dataclasses import dataclass
from itertools import chain
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.checkpoints.tensors import Model
from psp_rt.engine import InputSpec
from trainer.networks import (
    Encoder,
    EncoderConfig,
    EncoderKind,
    Generator,
    GeneratorConfig,
    official_channels,
)
from trainer.networks.generator import ModulatedConv
from trainer.networks.layers import fir_filter


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of an encoder and its generator."""

    name: str
    encoder: EncoderConfig
    generator: GeneratorConfig

    def parameter_bytes(self) -> int:
        """Return the size of the weights, without allocating them."""
        with torch.device("meta"):
            modules = (Encoder.create(self.encoder), Generator(self.generator))
            return sum(tensor.nbytes for module in modules for tensor in module.state_dict().values())

    def activation_bytes(self) -> int:
        """Return the size of the largest map of the generator, for one picture."""
        widths = enumerate(self.generator.channels, start=2)
        return max(channels * 4**level * 4 for level, channels in widths)


def official(kind: EncoderKind, size: int) -> Architecture:
    """Return the official model: an encoder of 256 pixels and a generator of ``size``."""
    generator = GeneratorConfig(channels=official_channels(size))
    encoder = EncoderConfig(kind=kind, num_styles=generator.num_styles)
    return Architecture(name=f"{kind}-{size}", encoder=encoder, generator=generator)


def named(name: str) -> Architecture:
    """Return the architecture that `official` or `tiny` gave this name."""
    kind, _, size = name.rpartition("-")
    return tiny(cast(EncoderKind, kind)) if size == "tiny" else official(cast(EncoderKind, kind), int(size))


def tiny(kind: EncoderKind) -> Architecture:
    """Return a model whose benchmark takes seconds; its numbers mean nothing."""
    generator = GeneratorConfig(channels=(16, 16, 16, 8, 8), style_dim=32, mapping_layers=2)
    encoder = EncoderConfig(
        kind=kind,
        num_styles=generator.num_styles,
        input_height=64,
        input_width=64,
        style_dim=32,
        widths=(8, 8, 16, 16),
        depths=(1, 1, 1, 1),
        head_width=16,
    )
    return Architecture(name=f"{kind}-tiny", encoder=encoder, generator=generator)


@torch.no_grad()
def draw(architecture: Architecture, *, seed: int = 0) -> Model:
    """Return a model with weights drawn so that its pictures are neither flat nor saturated.

    Comparing pictures would prove nothing if all of them were black. Convolutions of the encoder have the
    variance 2 / fan_in (He et al., arXiv:1502.01852); the generator keeps its variance by itself, and
    its colors are scaled into range.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder.create(architecture.encoder).eval()
        generator = Generator(architecture.generator).eval()
        for module in encoder.modules():
            _draw_layer(module)
        _draw_generator(generator)
        latent_avg = generator.mean_style(1000).expand(architecture.generator.num_styles, -1).clone()
    config = architecture.encoder
    return Model(
        encoder=encoder,
        generator=generator,
        latent_avg=latent_avg,
        input=InputSpec(kind="rgb", height=config.input_height, width=config.input_width),
        output_rows=None,
        task="benchmark",
        source_format="drawn",
        provenance={"source": f"weights drawn for {architecture.name}, seed {seed}"},
    )


def _draw_layer(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.uniform_(module.weight, 0.5, 0.9)  # below 1, because residual blocks add up
        nn.init.normal_(module.bias, std=0.1)
        nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
        nn.init.uniform_(module.running_var, 0.8, 1.2)  # type: ignore[arg-type]


def _draw_generator(generator: Generator) -> None:
    resolutions = len(generator.config.channels)
    for layer in (generator.conv1, *generator.convs):
        nn.init.normal_(layer.noise.weight, std=0.1)
        nn.init.normal_(layer.activate.bias, std=0.1)
    for layer in (generator.to_rgb1, *generator.to_rgbs):  # their pictures are summed
        layer.conv.weight.mul_(0.5 * resolutions**-0.5)


class GroupedConv(nn.Module):
    """Modulated convolution as in the public code, on the tensors of a `ModulatedConv`.

    The public code folds the style into the weights, one set of weights per picture, and runs them as one
    grouped convolution (StyleGAN2, arXiv:1912.04958, equations 1 and 3). `trainer.networks` scales the
    activations instead.
    """

    def __init__(self, conv: ModulatedConv) -> None:
        super().__init__()
        self.weight = conv.weight
        self.modulation = conv.modulation
        self.demodulate = conv.demodulate
        self.padding = conv.padding
        self.blur = conv.blur if conv.up else None

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Convolve [N, I, H, W] with a style [N, D]; the result is [N, O, H, W] or twice as large."""
        weight = self.sample_weights(style)
        count, outputs, inputs, *kernel = weight.shape
        # The public code uses NCHW; our constant start is channels-last.
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
    """Return the same generator with grouped convolutions; it shares all tensors with the given one."""
    tensors = {id(tensor): tensor for tensor in chain(generator.parameters(), generator.buffers())}
    twin = copy.deepcopy(generator, tensors)  # copies the modules; the memo makes deepcopy keep the tensors
    for module in list(twin.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ModulatedConv):
                setattr(module, name, GroupedConv(child))
    return twin
