"""The generator in the form that suits a GPU: see `export.graphs.gpu`.

Shapes as in `export.graphs.networks`; K is the number of demodulated convolutions.
"""

from collections.abc import Iterator
from itertools import accumulate, groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.graphs.networks import GeneratorGraph, RgbLayer, StyledLayer, activated


class GpuGeneratorGraph(nn.Module):
    """The generator, from a `GeneratorGraph`, whose tensors it shares."""

    name, output = "generator", "image"
    start: Tensor

    def __init__(self, plain: GeneratorGraph) -> None:
        super().__init__()
        self.rows, self.example_inputs = plain.rows, plain.example_inputs
        self.register_buffer("start", plain.start)
        self.conv1 = GpuStyledLayer(plain.conv1)
        self.to_rgb1 = GpuRgbLayer(plain.to_rgb1)
        self.convs = nn.ModuleList(map(GpuStyledLayer, plain.convs))
        self.to_rgbs = nn.ModuleList(map(GpuRgbLayer, plain.to_rgbs))
        self.styles = Styles(plain)

    @property
    def joined(self) -> dict[str, tuple[str, ...]]:
        """Return the tensors of the portable graph that some of this graph consist of."""
        return {f"styles.{name}": parts for name, parts in self.styles.joined.items()}

    def forward(self, codes: Tensor, reference: Tensor, weights: Tensor) -> Tensor:
        weights = weights[:, :, None]
        picture = self.synthesize((1 - weights) * codes + weights * reference)
        if self.rows is not None:
            picture = picture[:, self.rows[0] : self.rows[1]]
        levels = (picture * 127.5 + 128).clamp(0, 255)  # 127.5 to center, and 0.5 to round
        return levels.to(torch.uint8)

    def synthesize(self, codes: Tensor) -> Tensor:
        """Turn mixed codes into a picture [N, S, S, 3], nominally in [-1, 1]."""
        styles, demodulations, colors = self.styles(codes)
        x, picture = self.start.expand(codes.shape[0], -1, -1, -1), None
        for index, layer in enumerate([self.conv1, *self.convs]):
            x = layer(x, styles[index], demodulations[index])
            if index % 2 == 0:  # the last convolution of a resolution
                to_rgb = [self.to_rgb1, *self.to_rgbs][index // 2]
                picture = to_rgb(x, colors[index // 2], picture)
        assert isinstance(picture, Tensor)
        return picture


class GpuStyledLayer(nn.Module):
    """A `StyledLayer` that is given its normalized style and its demodulation."""

    noise_strength: Tensor | None
    noise_constant: Tensor | None

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        assert isinstance(layer, StyledLayer)
        self.conv = layer.conv
        self.register_buffer("noise_strength", layer.noise_strength)
        self.register_buffer("noise_constant", layer.noise_constant)
        self.clamp = layer.clamp

    def forward(self, x: Tensor, style: Tensor, demodulation: Tensor) -> Tensor:
        """Turn [N, I, H, W] into [N, O, H, W] or twice as large, with [N, I] and [N, O]."""
        x, demodulation = x * style[:, :, None, None], demodulation[:, :, None, None]
        if self.conv.upsample is not None:
            x = self.conv.upsample(x, demodulation)
        else:
            x = F.conv2d(x, self.conv.weight, padding=1) * demodulation
            x = x if self.conv.bias is None else x + self.conv.bias
        return activated(x, self.noise_constant, self.noise_strength, self.clamp)


class GpuRgbLayer(nn.Module):
    """An `RgbLayer` that is given its style, as three weighted sums.

    A product with the weights, or a convolution, would want the channels in another order in memory than the
    convolutions do, and so cost a pass over the map.
    """

    weight: Tensor
    bias: Tensor
    kernel: Tensor | None

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        assert isinstance(layer, RgbLayer)
        self.register_buffer("weight", layer.weight)
        self.register_buffer("bias", layer.bias.reshape(3))
        kernel = None if layer.upsample is None else layer.upsample.kernel.expand(3, 1, 4, 4).contiguous()
        self.register_buffer("kernel", kernel)
        self.clamp = layer.clamp

    def forward(self, x: Tensor, style: Tensor, below: Tensor | None) -> Tensor:
        """Return the picture [N, S, S, 3] of [N, C, S, S], added to the one below, [N, S / 2, S / 2, 3]."""
        weights = self.weight * style[:, None]  # [N, 3, C]
        sums = [(x * weights[:, color, :, None, None]).sum(dim=1) for color in range(3)]
        rgb = torch.stack(sums, dim=3) + self.bias
        if self.clamp is not None:
            rgb = rgb.clamp(-self.clamp, self.clamp)
        if below is None or self.kernel is None:
            return rgb
        # Upsampling and the FIR filter are one transposed convolution: `export.graphs.ops.Upsample`.
        doubled = F.conv_transpose2d(below.permute(0, 3, 1, 2), self.kernel, stride=2, padding=1, groups=3)
        return rgb + doubled.permute(0, 2, 3, 1)


class Styles(nn.Module):
    """All affine layers as one product, and all demodulations as one product for each output width.

    Row i of a code feeds the demodulated convolution i; the colors of resolution j use row 2 j + 1. So each
    row is multiplied with all weights, and each layer takes its part: that is little arithmetic, and reads
    each weight once.
    """

    affine_weight: Tensor
    affine_bias: Tensor
    epsilon: Tensor

    def __init__(self, plain: GeneratorGraph) -> None:
        super().__init__()
        convs: dict[str, Any] = dict(_named(plain, "conv1", "convs"))  # `StyledLayer`s by their names
        colors: dict[str, Any] = dict(_named(plain, "to_rgb1", "to_rgbs"))  # `RgbLayer`s
        layers = convs | colors
        self.inputs: list[int] = [layer.affine.out_features for layer in layers.values()]
        self.outputs: list[int] = [layer.conv.epsilon.shape[1] for layer in convs.values()]
        self.code_rows = [*range(len(convs)), *range(1, 2 * len(colors), 2)]

        # The tensors, and which of the portable graph they consist of.
        self.register_buffer("affine_weight", torch.cat([layer.affine.weight for layer in layers.values()]))
        self.register_buffer("affine_bias", torch.cat([layer.affine.bias for layer in layers.values()]))
        widest = max(self.outputs)
        rows = [F.pad(layer.conv.epsilon, (0, widest - count), value=1.0)
                for layer, count in zip(convs.values(), self.outputs, strict=True)]  # fmt: skip
        self.register_buffer("epsilon", torch.stack(rows))  # [K, 1, widest]
        self.joined = {"affine_weight": tuple(f"{name}.affine.weight" for name in layers)}
        self.groups: list[list[int]] = []  # convolutions in a row with equally many outputs
        for _, members in groupby(range(len(convs)), key=lambda index: self.outputs[index]):
            group = list(members)
            name = f"energies_{len(self.groups)}"
            named = {key: layer for at, (key, layer) in enumerate(convs.items()) if at in group}
            self.register_buffer(name, torch.cat([layer.conv.energies for layer in named.values()]))
            self.joined[name] = tuple(f"{key}.conv.energies" for key in named)
            self.groups.append(group)

    def forward(self, codes: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return normalized styles [N, I], demodulations [N, O], and styles of the colors [N, C].

        Dividing a style by its largest number, and multiplying the demodulation with it, changes nothing but
        the range of the numbers in between (`export.graphs.ops.ModulatedConv`).
        """
        # Affine layers.
        flat = F.linear(codes.reshape(-1, codes.shape[2]), self.affine_weight, self.affine_bias)
        every = flat.reshape(-1, codes.shape[1], flat.shape[1])  # [N, L, all inputs]
        ends = list(accumulate(self.inputs))
        styles = [every[:, row, end - count : end]
                  for row, end, count in zip(self.code_rows, ends, self.inputs, strict=True)]  # fmt: skip
        styles, colors = styles[: len(self.outputs)], styles[len(self.outputs) :]

        # Normalization, with all styles padded to one length.
        longest = max(self.inputs)
        padded = [_padded(style, 0, longest - count)
                  for style, count in zip(styles, self.inputs, strict=False)]  # fmt: skip
        together = torch.stack(padded)  # [K, N, longest]
        largest = together.abs().amax(dim=2, keepdim=True).clamp(min=1e-12)
        scale = 1 / largest
        together = together * scale

        # Demodulation. The squares of a group are the blocks on the diagonal of one matrix.
        energies = []
        for number, group in enumerate(self.groups):
            counts = [self.inputs[index] for index in group]
            rows = []
            for index, end in zip(group, accumulate(counts), strict=True):
                square = together[index, :, : self.inputs[index]].square()
                rows.append(_padded(square, end - self.inputs[index], sum(counts) - end))
            product = torch.stack(rows) @ self.get_buffer(f"energies_{number}")  # [of the group, N, O]
            missing = max(self.outputs) - self.outputs[group[0]]
            energies += [_padded(product[position], 0, missing) for position in range(len(group))]
        energy = torch.stack(energies)  # [K, N, widest]
        demodulation = (energy + self.epsilon * scale.square()).rsqrt()

        normalized = [together[index, :, :count] for index, count in enumerate(self.inputs[: len(styles)])]
        return (
            normalized,
            [demodulation[index, :, :count] for index, count in enumerate(self.outputs)],
            colors,
        )


def _named(plain: GeneratorGraph, first: str, rest: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of a kind in their order, with their names."""
    yield first, plain.get_submodule(first)
    for name, layer in plain.get_submodule(rest).named_children():
        yield f"{rest}.{name}", layer


def _padded(x: Tensor, before: int, after: int) -> Tensor:
    """Put zeros before and after the rows [N, C] of a style.

    Not by ONNX's Pad: readers of engines refuse more than 256 at once.
    """
    zero = torch.zeros(1, 1)
    parts = [zero.expand(x.shape[0], before), x, zero.expand(x.shape[0], after)]
    return torch.cat([part for part, used in zip(parts, (before, True, after), strict=True) if used], dim=1)
