"""The three graphs of an engine file, as modules to trace: encoder, mapping, generator.

They contain all arithmetic from byte to byte, including scaling, one-hot, latent average, style mix,
clamp and rounding, so that backends only move bytes. N is the batch, L the number of styles, D the
style dimension, S the side of the output.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from export.graphs.ops import ACTIVATION_GAIN, AveragePool, ModulatedConv, Upsample
from trainer.networks import Encoder, Generator, Noise
from trainer.networks.encoders import LastLayerEncoder
from trainer.networks.generator import StyledConv, ToRgb
from trainer.networks.layers import EqualLinear


class EncoderGraph(nn.Module):
    """image uint8 [N, H, W, C] -> codes [N, L, D]."""

    name, output = "encoder", "codes"
    latent_avg: Tensor | None

    def __init__(self, encoder: Encoder, latent_avg: Tensor | None, *, kind: str) -> None:
        super().__init__()
        self.encoder = with_exportable_pool(fold_factors(fold_batch_norms(encoder)))
        self.kind = kind
        self.register_buffer("latent_avg", latent_avg)

    def example_inputs(self) -> dict[str, Tensor]:
        """Return inputs to trace the graph with, under their names."""
        config = self.encoder.config
        channels = 1 if self.kind == "labels" else config.input_channels
        shape = (2, config.input_height, config.input_width, channels)
        return {"image": torch.zeros(shape, dtype=torch.uint8)}

    def forward(self, image: Tensor) -> Tensor:
        codes: Tensor = self.encoder(self.network_input(image))
        return codes if self.latent_avg is None else codes + self.latent_avg

    def network_input(self, image: Tensor) -> Tensor:
        """Turn bytes into the inputs that the network was trained on, [N, C, H, W]."""
        if self.kind == "labels":
            classes = torch.arange(self.encoder.config.input_channels, dtype=torch.float32)
            return (image.float().permute(0, 3, 1, 2) == classes[:, None, None]).float()
        x = image.float().permute(0, 3, 1, 2) / 255
        return x if self.kind == "gray" else x * 2 - 1


class MappingGraph(nn.Module):
    """z [N, D] -> w [N, D]."""

    name, output = "mapping", "w"

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.style_dim = generator.config.style_dim
        self.layers = nn.ModuleList([linear(layer) for layer in list(generator.style)[1:]])

    def example_inputs(self) -> dict[str, Tensor]:
        """Return inputs to trace the graph with, under their names."""
        return {"z": torch.zeros(2, self.style_dim)}

    def forward(self, z: Tensor) -> Tensor:
        w = z * (z.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.layers:
            w = F.leaky_relu(layer(w), 0.2)
        return w


class GeneratorGraph(nn.Module):
    """codes, reference [N, L, D], weights [N, L] -> image uint8 [N, rows, S, 3].

    Row i of the mixed code is ``(1 - weights[i]) * codes[i] + weights[i] * reference[i]``.

    Args:
        rows: First and last row (exclusive) of the picture to keep; None for all.
    """

    name, output = "generator", "image"
    start: Tensor

    def __init__(
        self, generator: Generator, *, noise: Noise = "const", rows: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.rows = rows
        self.config = generator.config
        noises = generator.noises
        self.register_buffer("start", generator.input.input.detach().clone())
        self.conv1 = StyledLayer(generator.conv1, noises[0], noise)
        self.to_rgb1 = RgbLayer(generator.to_rgb1, side=4)
        self.convs = nn.ModuleList(
            StyledLayer(layer, noises[index + 1], noise) for index, layer in enumerate(generator.convs)
        )
        self.to_rgbs = nn.ModuleList(
            RgbLayer(layer, side=8 << level) for level, layer in enumerate(generator.to_rgbs)
        )

    def example_inputs(self) -> dict[str, Tensor]:
        """Return inputs to trace the graph with, under their names."""
        code = torch.zeros(2, self.config.num_styles, self.config.style_dim)
        return {"codes": code, "reference": code.clone(), "weights": code[:, :, 0].clone()}

    def forward(self, codes: Tensor, reference: Tensor, weights: Tensor) -> Tensor:
        weights = weights[:, :, None]
        picture = self.synthesize((1 - weights) * codes + weights * reference)
        if self.rows is not None:
            picture = picture[:, :, self.rows[0] : self.rows[1]]
        levels = (picture * 127.5 + 128).clamp(0, 255)  # 127.5 to center, and 0.5 to round
        # The cast comes last: in TensorRT an 8-bit tensor may only be an input or an output.
        return levels.permute(0, 2, 3, 1).to(torch.uint8)

    def synthesize(self, codes: Tensor) -> Tensor:
        """Turn mixed codes into a picture [N, 3, S, S], nominally in [-1, 1]."""
        x = self.start.expand(codes.shape[0], -1, -1, -1)
        x = self.conv1(x, codes[:, 0])
        rgb = self.to_rgb1(x, codes[:, 1], None)
        for block, to_rgb in enumerate(self.to_rgbs):
            row = 2 * block + 1
            x = self.convs[2 * block](x, codes[:, row])
            x = self.convs[2 * block + 1](x, codes[:, row + 1])
            rgb = to_rgb(x, codes[:, row + 2], rgb)
        return rgb


class StyledLayer(nn.Module):
    """Modulated convolution, noise, bias, activation. The activation's gain is folded into the constants."""

    noise_strength: Tensor | None
    noise_constant: Tensor | None

    def __init__(self, layer: nn.Module, constant: Tensor, noise: Noise) -> None:
        super().__init__()
        assert isinstance(layer, StyledConv)
        self.affine = linear(layer.conv.modulation)
        kernel = layer.conv.blur.kernel if layer.conv.up else None
        bias = layer.activate.bias.detach() * ACTIVATION_GAIN
        self.conv = ModulatedConv(
            layer.conv.scaled_weight.detach(), gain=ACTIVATION_GAIN, bias=bias, up=kernel
        )
        strength = layer.noise.weight.detach() * ACTIVATION_GAIN
        self.register_buffer("noise_strength", strength if noise == "random" else None)
        self.register_buffer("noise_constant", strength * constant if noise == "const" else None)
        self.clamp = layer.conv_clamp

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        x = self.conv(x, self.affine(style))
        return activated(x, self.noise_constant, self.noise_strength, self.clamp)


def activated(x: Tensor, constant: Tensor | None, strength: Tensor | None, clamp: float | None) -> Tensor:
    """Add constant noise or new noise of a strength, if any, and apply the activation."""
    if constant is not None:
        x = x + constant
    elif strength is not None:
        x = x + torch.randn_like(x[:, :1]) * strength
    x = F.leaky_relu(x, 0.2)
    return x if clamp is None else x.clamp(-clamp, clamp)


class RgbLayer(nn.Module):
    """The RGB picture of one resolution, added to the upsampled picture of the resolution below."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Module, *, side: int) -> None:
        super().__init__()
        assert isinstance(layer, ToRgb)
        self.side = side
        self.affine = linear(layer.conv.modulation)
        self.register_buffer(
            "weight", layer.conv.scaled_weight.detach()[None, :, :, 0, 0].clone()
        )  # [1, 3, C]
        self.register_buffer("bias", layer.bias.detach().clone())
        self.upsample = Upsample(layer.upsample.kernel) if hasattr(layer, "upsample") else None
        self.clamp = layer.conv_clamp

    def forward(self, x: Tensor, style: Tensor, below: Tensor | None) -> Tensor:
        # With three outputs it is cheaper to scale the weights than the map, although they are no longer
        # constant then: on a CPU it takes less than half the time.
        weight = self.weight * self.affine(style)[:, None]  # [N, 3, C]
        pixels = x.reshape(-1, self.weight.shape[2], self.side**2)
        rgb = (weight @ pixels).reshape(-1, 3, self.side, self.side) + self.bias
        if self.clamp is not None:
            rgb = rgb.clamp(-self.clamp, self.clamp)
        return rgb if below is None or self.upsample is None else rgb + self.upsample(below)


def linear(layer: nn.Module) -> nn.Linear:
    """Return a layer with its run-time factor folded in, and for a mapping layer its activation's gain."""
    assert isinstance(layer, EqualLinear)
    gain = ACTIVATION_GAIN if layer.lr_mul != 1 else 1.0
    plain = nn.Linear(layer.weight.shape[1], layer.weight.shape[0])
    plain.weight.data = layer.weight.detach() * (layer.scale * gain)
    plain.bias.data = layer.bias.detach() * (layer.lr_mul * gain)
    return plain


def fold_batch_norms(encoder: Encoder) -> Encoder:
    """Return the encoder with every batch norm that follows a convolution folded into it.

    Batch norms that precede a convolution stay, because the zero padding comes between the two.
    """
    for module in encoder.modules():
        if isinstance(module, nn.Sequential):
            layers = list(module)
            for index, (layer, following) in enumerate(pairwise(layers)):
                if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
                    module[index] = fuse_conv_bn_eval(layer, following)
                    module[index + 1] = nn.Identity()
    return encoder


def fold_factors(encoder: Encoder) -> Encoder:
    """Return the encoder with the run-time factors of its linear layers folded in.

    Tracing folds them too, but after the weights have been rounded to FP16: a weight that is rounded,
    scaled and rounded again moved the codes by up to 1.7e-4 of their range.
    """
    for module in list(encoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, EqualLinear):
                setattr(module, name, linear(child))
    return encoder


def with_exportable_pool(encoder: Encoder) -> Encoder:
    """Return the encoder with its last pooling layer, if it has one, in a form that ONNX supports."""
    if isinstance(encoder, LastLayerEncoder):
        size = encoder.config.input_height // 16, encoder.config.input_width // 16
        encoder.output_layer_2[1] = AveragePool(size, pooled=encoder.POOLED)
    return encoder
