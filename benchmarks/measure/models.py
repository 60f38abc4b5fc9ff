"""Models with drawn weights: the official sizes, and one that takes no time."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from export.checkpoints.load import Model
from psp_rt import InputSpec
from trainer.networks import (
    Encoder,
    EncoderConfig,
    EncoderKind,
    Generator,
    GeneratorConfig,
    official_channels,
)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of an encoder and its generator."""

    name: str
    encoder: EncoderConfig
    generator: GeneratorConfig

    def parameter_bytes(self) -> int:
        """Return the memory that the weights take, without taking it."""
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
    """Return the architecture of a name that one of the others gave."""
    kind, _, size = name.rpartition("-")
    return tiny(cast(EncoderKind, kind)) if size == "tiny" else official(cast(EncoderKind, kind), int(size))


def tiny(kind: EncoderKind) -> Architecture:
    """Return a model whose benchmark takes seconds; its numbers say nothing."""
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

    Comparing pictures would show nothing if they were all black. Convolutions of the encoder have the
    variance 2 / fan_in (He et al., arXiv:1502.01852); the generator keeps its variance by itself, and
    its colours are brought into range.
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
        nn.init.uniform_(module.weight, 0.5, 0.9)  # below 1, or the residual blocks add up
        nn.init.normal_(module.bias, std=0.1)
        nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
        nn.init.uniform_(module.running_var, 0.8, 1.2)  # type: ignore[arg-type]


def _draw_generator(generator: Generator) -> None:
    resolutions = len(generator.config.channels)
    for layer in (generator.conv1, *generator.convs):
        nn.init.normal_(layer.noise.weight, std=0.1)
        nn.init.normal_(layer.activate.bias, std=0.1)
    for layer in (generator.to_rgb1, *generator.to_rgbs):  # their pictures are added up
        layer.conv.weight.mul_(0.5 * resolutions**-0.5)
