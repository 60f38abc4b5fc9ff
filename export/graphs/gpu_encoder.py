"""The encoder in the form that suits a GPU: see `export.graphs.gpu`."""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.graphs.networks import EncoderGraph
from trainer.networks.backbone import PReLU, SqueezeExcite
from trainer.networks.encoders import Encoder, MapToStyle, OffsetEncoder, PyramidEncoder

MOST_HIDDEN = 400  # hidden channels of all gates that are added one by one; the official encoder has 364


class GpuEncoderGraph(nn.Module):
    """The encoder, from an `EncoderGraph`, whose tensors it shares."""

    name, output = "encoder", "codes"
    latent_avg: Tensor | None

    def __init__(self, plain: EncoderGraph) -> None:
        super().__init__()
        self.network_input, self.example_inputs = plain.network_input, plain.example_inputs
        self.register_buffer("latent_avg", plain.latent_avg)
        tensors = [*plain.encoder.parameters(), *plain.encoder.buffers()]
        self.encoder = copy.deepcopy(plain.encoder, {id(tensor): tensor for tensor in tensors})
        _replace_layers(self.encoder)
        self.joined: dict[str, tuple[str, ...]] = {}
        if isinstance(self.encoder, PyramidEncoder):
            self.heads = Heads(self.encoder)
            self.joined = {f"heads.{name}": parts for name, parts in self.heads.joined.items()}
            del self.encoder.styles

    def forward(self, image: Tensor) -> Tensor:
        x = self.network_input(image)
        if isinstance(self.encoder, PyramidEncoder):
            codes = self.heads(*self.encoder.pyramid(x))
            if isinstance(self.encoder, OffsetEncoder):
                first, offsets = codes[:, :1], codes[:, 1:]
                codes = torch.cat([first, first + offsets], dim=1)
        else:
            codes = self.encoder(x)
        return codes if self.latent_avg is None else codes + self.latent_avg


def _replace_layers(encoder: Encoder) -> None:
    """Replace PReLUs and gates by forms that fuse."""
    gates = [module for module in encoder.modules() if isinstance(module, SqueezeExcite)]
    few = sum(gate.fc1.out_channels for gate in gates) <= MOST_HIDDEN
    for module in list(encoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, PReLU):
                setattr(module, name, GpuPReLU(child))
            elif isinstance(child, SqueezeExcite) and few:
                setattr(module, name, GpuSqueezeExcite(child))


class GpuPReLU(nn.Module):
    """PReLU of ReLUs, exact for positive numbers in any precision."""

    def __init__(self, layer: PReLU) -> None:
        super().__init__()
        self.weight = layer.weight

    def forward(self, x: Tensor) -> Tensor:
        positive = F.relu(x)
        return positive + self.weight[:, None, None] * (x - positive)


class GpuSqueezeExcite(nn.Module):
    """Squeeze-and-excite whose second layer is a chain of additions, which fuses into the multiplication."""

    def __init__(self, layer: SqueezeExcite) -> None:
        super().__init__()
        self.fc1, self.fc2 = layer.fc1, layer.fc2

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(2, 3))[:, :, None]  # [N, C, 1]
        hidden = F.relu(self.fc1.weight[:, :, 0, 0] @ mean)  # [N, hidden, 1]
        terms = hidden * self.fc2.weight[:, :, 0, 0].T  # [N, hidden, C]
        gate = terms[:, 0]
        for index in range(1, self.fc1.out_channels):
            gate = gate + terms[:, index]
        return x * gate.sigmoid()[:, :, None, None]


class Heads(nn.Module):
    """The heads of a feature pyramid as few convolutions, all at the same steps.

    Each step halves the maps. The heads of the finest map begin, with one convolution for all of them; those
    of a coarser map join where the maps have become as small as theirs. In between, the maps of all heads so
    far are the groups of one convolution, in the order of the rows: coarse, middle, fine.
    """

    linear_weight: Tensor
    linear_bias: Tensor

    def __init__(self, encoder: PyramidEncoder) -> None:
        super().__init__()
        config, heads = encoder.config, [head for head in encoder.styles if isinstance(head, MapToStyle)]
        levels = [range(len(heads))[part] for part in (
            slice(encoder.COARSE), slice(encoder.COARSE, encoder.MIDDLE), slice(encoder.MIDDLE, None)
        )]  # fmt: skip
        self.level_rows = [list(rows) for rows in levels]  # of the coarse, the middle and the fine map
        depths = [len(_convolutions(heads[rows[0]])) if rows else 0 for rows in self.level_rows]
        self.steps = max(depths)
        self.starts = [self.steps - depth for depth in depths]  # the step at which each level joins
        self.joined: dict[str, tuple[str, ...]] = {}

        # The convolutions: those that read a level's map, and those that go on with all heads so far.
        self.firsts = nn.ModuleList(nn.Identity() for _ in self.level_rows)
        self.groups = nn.ModuleList(nn.Identity() for _ in range(self.steps))
        for level, rows in enumerate(self.level_rows):
            if rows and depths[level]:
                size = [side // (16 >> level) for side in (config.input_height, config.input_width)]
                self.firsts[level] = self._joined_convs(f"firsts.{level}", heads, rows, depths[level], size)
        for step in range(self.steps):
            rows = [
                row for level, rows in enumerate(self.level_rows) if self.starts[level] < step for row in rows
            ]
            if rows:
                finest = max(level for level, rows in enumerate(self.level_rows) if rows)
                size = [
                    -(-side // (16 >> finest) // 2**step)
                    for side in (config.input_height, config.input_width)
                ]
                left = self.steps - step
                self.groups[step] = self._joined_convs(
                    f"groups.{step}", heads, rows, left, size, grouped=True
                )

        # The linear layers.
        weights = torch.stack([head.linear.weight for head in heads])
        self.register_buffer("linear_weight", weights)  # [L, D, C]
        self.register_buffer("linear_bias", torch.stack([head.linear.bias for head in heads])[:, :, None])
        self.joined["linear_weight"] = tuple(
            f"encoder.styles.{row}.linear.weight" for row in range(len(heads))
        )

    def _joined_convs(
        self,
        name: str,
        heads: Sequence[MapToStyle],
        rows: Sequence[int],
        left: int,
        size: Sequence[int],
        *,
        grouped: bool = False,
    ) -> "HalvingConv":
        """Return the convolutions of some heads that have so many left as one."""
        convs = {row: _convolutions(heads[row]) for row in rows}
        chosen = {row: list(found.items())[-left] for row, found in convs.items()}
        self.joined[f"{name}.weight"] = tuple(
            f"encoder.styles.{row}.convs.{place}.weight" for row, (place, _) in chosen.items()
        )
        layers = [layer for _, layer in chosen.values()]
        return HalvingConv(layers, size, groups=len(rows) if grouped else 1)

    def forward(self, coarse: Tensor, middle: Tensor, fine: Tensor) -> Tensor:
        """Return the codes [N, L, D] of the three maps."""
        x: Tensor | None = None
        for step in range(self.steps + 1):
            parts = [] if x is None else [self.groups[step](x) if step < self.steps else x]
            for level, features in enumerate((coarse, middle, fine)):
                if self.level_rows[level] and self.starts[level] == step:
                    count = len(self.level_rows[level])
                    own = (
                        self.firsts[level](features) if step < self.steps else features.repeat(1, count, 1, 1)
                    )
                    parts.insert(0, own)
            x = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0] if parts else x
        assert x is not None
        ends = x.reshape(x.shape[0], self.linear_weight.shape[0], -1).permute(1, 2, 0)  # [L, C, N]
        return (self.linear_weight @ ends + self.linear_bias).permute(2, 0, 1)


class HalvingConv(nn.Module):
    """3x3 convolutions with stride 2 and the activation of the heads, as one.

    Args:
        layers: The convolutions, on one map or each on its group of channels.
        size: Height and width of the map.
        groups: How many groups there are.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, layers: Sequence[nn.Conv2d], size: Sequence[int], *, groups: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.cat([layer.weight for layer in layers]))
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self.register_buffer("bias", torch.cat(biases))
        self.groups = groups
        # Of a side of one or two pixels, the first tap sees only padding, and of one pixel the last, too.
        self.taps = [slice(1, 1 + side) if side <= 2 else slice(0, 3) for side in size]
        self.padding = [0 if side <= 2 else 1 for side in size]

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if not all(self.padding):
            weight = weight[:, :, self.taps[0], self.taps[1]]
        x = F.conv2d(x, weight, self.bias, stride=2, padding=self.padding, groups=self.groups)
        return F.leaky_relu(x, 0.01)


def _convolutions(head: MapToStyle) -> dict[int, nn.Conv2d]:
    """Return the convolutions of a head by their place."""
    return {place: layer for place, layer in enumerate(head.convs) if isinstance(layer, nn.Conv2d)}
