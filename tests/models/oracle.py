"""The pSp model in NumPy, float64, straight from its equations: what exported engines are held to.

Nothing here is shared with the code under test: convolutions are sums over windows, the styles are
folded into one weight for every sample (StyleGAN2, arXiv:1912.04958, equations 1 and 3), and the FIR
filters insert zeros, pad, correlate and crop as the public code's upfirdn2d does. Tensors come under
their official names, ``encoder.*`` and ``decoder.*``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Tensors:
    """The tensors whose names begin with a prefix."""

    values: Mapping[str, Array]
    prefix: str = ""

    def __getitem__(self, name: str) -> Array:
        return self.values[self.prefix + name]

    def at(self, *path: str | int) -> "Tensors":
        return Tensors(self.values, self.prefix + "".join(f"{part}." for part in path))

    def has(self, name: str) -> bool:
        return any(key.startswith(self.prefix + name) for key in self.values)

    def numbers(self, name: str) -> list[int]:
        """Return the numbers of the layers ``name.N``, in order."""
        start = self.prefix + (f"{name}." if name else "")
        parts = [key.removeprefix(start).split(".")[0] for key in self.values if key.startswith(start)]
        return sorted({int(part) for part in parts})


# The encoders.


def network_input(images: NDArray[np.uint8], kind: str, labels: int | None) -> Array:
    """Turn bytes [N, H, W, C] into what the public code trains on, [N, C, H, W]."""
    if kind == "labels":
        return np.moveaxis(np.eye(labels)[images[..., 0]], 3, 1)
    scaled = np.moveaxis(images.astype(np.float64), 3, 1) / 255
    return (scaled - 0.5) / 0.5 if kind == "rgb" else scaled


def encode(
    values: Mapping[str, Array], images: Array, *, kind: str, depths: tuple[int, ...], num_styles: int
) -> Array:
    """Return codes [N, L, D] of network inputs [N, C, H, W], relative to the latent average."""
    encoder = Tensors(values, "encoder.")
    taps = backbone(encoder, images, depths)
    if kind == "w":
        style = equal_linear(encoder.at("linear"), taps[3].mean(axis=(2, 3)))
        return np.stack([style] * num_styles, axis=1)
    if kind == "naive_w+":
        x = adaptive_pool(batch_norm(encoder.at("output_layer_2.0"), taps[3]), 7)
        layer = encoder.at("output_layer_2.3")
        x = x.reshape(len(x), -1) @ layer["weight"].T + layer["bias"]
        return equal_linear(encoder.at("linear"), x).reshape(len(x), num_styles, -1)

    _, fine, middle, coarse = taps
    middle = stretch(coarse, middle.shape[2:]) + plain_conv(encoder.at("latlayer1"), middle)
    fine = stretch(middle, fine.shape[2:]) + plain_conv(encoder.at("latlayer2"), fine)
    maps = [coarse] * 3 + [middle] * 4 + [fine] * (num_styles - 7)
    rows = [head(encoder.at("styles", row), x) for row, x in enumerate(maps[:num_styles])]
    if kind == "e4e":
        rows = rows[:1] + [rows[0] + offset for offset in rows[1:]]
    return np.stack(rows, axis=1)


def backbone(encoder: Tensors, images: Array, depths: tuple[int, ...]) -> list[Array]:
    """Return the maps at the end of each of the four stages."""
    layer = encoder.at("input_layer")
    x = prelu(layer["2.weight"], batch_norm(layer.at(1), correlate(images, layer["0.weight"], padding=1)))
    ends = list(accumulate(depths))
    starts = [0, *ends[:-1]]
    taps = []
    for index in range(ends[-1]):
        x = residual_block(encoder.at("body", index), x, stride=2 if index in starts else 1)
        if index + 1 in ends:
            taps.append(x)
    return taps


def residual_block(block: Tensors, x: Array, *, stride: int) -> Array:
    if block.has("shortcut_layer."):
        shortcut = correlate(x, block["shortcut_layer.0.weight"], stride=stride)
        shortcut = batch_norm(block.at("shortcut_layer.1"), shortcut)
    else:
        shortcut = x[:, :, ::stride, ::stride]
    layer = block.at("res_layer")
    x = correlate(batch_norm(layer.at(0), x), layer["1.weight"], padding=1)
    x = correlate(prelu(layer["2.weight"], x), layer["3.weight"], stride=stride, padding=1)
    x = batch_norm(layer.at(4), x)
    hidden = np.maximum(correlate(x.mean(axis=(2, 3), keepdims=True), layer["5.fc1.weight"]), 0)
    gate = 1 / (1 + np.exp(-correlate(hidden, layer["5.fc2.weight"])))
    return x * gate + shortcut


def head(layer: Tensors, x: Array) -> Array:
    for index in layer.numbers("convs"):
        step = layer.at("convs", index)
        x = leaky(correlate(x, step["weight"], stride=2, padding=1) + step["bias"][:, None, None], 0.01)
    return equal_linear(layer.at("linear"), x.reshape(len(x), -1))


def batch_norm(layer: Tensors, x: Array) -> Array:
    scale = layer["weight"] / np.sqrt(layer["running_var"] + 1e-5)
    shift = layer["bias"] - layer["running_mean"] * scale
    return x * scale[:, None, None] + shift[:, None, None]


def prelu(slope: Array, x: Array) -> Array:
    return np.where(x >= 0, x, x * slope[:, None, None])


def plain_conv(layer: Tensors, x: Array) -> Array:
    return correlate(x, layer["weight"]) + layer["bias"][:, None, None]


def adaptive_pool(x: Array, side: int) -> Array:
    """Average [N, C, H, W] over side x side windows, which overlap where they do not fit."""
    height, width = x.shape[2:]
    result = np.empty((*x.shape[:2], side, side))
    for i in range(side):
        for j in range(side):
            rows = slice(i * height // side, -(-(i + 1) * height // side))
            columns = slice(j * width // side, -(-(j + 1) * width // side))
            result[:, :, i, j] = x[:, :, rows, columns].mean(axis=(2, 3))
    return result


def stretch(x: Array, size: tuple[int, ...]) -> Array:
    """Resize bilinearly so that corner pixels keep their places (align_corners)."""
    for axis, wanted in zip((2, 3), size, strict=True):
        x = np.moveaxis(x, axis, 0)
        places = np.arange(wanted) * (len(x) - 1) / max(wanted - 1, 1)
        below = np.minimum(places.astype(int), max(len(x) - 2, 0))
        above = np.minimum(below + 1, len(x) - 1)
        share = (places - below)[:, None, None, None]
        x = np.moveaxis((1 - share) * x[below] + share * x[above], 0, axis)
    return x


# The generator.


def map_styles(values: Mapping[str, Array], z: Array) -> Array:
    """Map z [N, D] to styles w [N, D]."""
    layers = Tensors(values, "decoder.style.")
    x = z / np.sqrt((z**2).mean(axis=1, keepdims=True) + 1e-8)
    for number in layers.numbers(""):
        x = fused_leaky(equal_linear(layers.at(number), x, lr_mul=0.01))
    return x


def generate(values: Mapping[str, Array], codes: Array, *, noise: bool = True) -> Array:
    """Turn codes [N, L, D] into pictures [N, 3, S, S], nominally in [-1, 1]."""
    decoder = Tensors(values, "decoder.")
    pictures = [decoder[f"noises.noise_{layer}"] * noise for layer in range(codes.shape[1] - 1)]
    x = np.repeat(decoder["input.input"], len(codes), axis=0)
    x = styled_conv(decoder.at("conv1"), x, codes[:, 0], pictures[0])
    skip = colors(decoder.at("to_rgb1"), x, codes[:, 1])
    for i in range(1, codes.shape[1] - 2, 2):  # the rows are shared as in the public code
        x = styled_conv(decoder.at("convs", i - 1), x, codes[:, i], pictures[i])
        x = styled_conv(decoder.at("convs", i), x, codes[:, i + 1], pictures[i + 1])
        layer = decoder.at("to_rgbs", i // 2)
        skip = upfirdn(skip, layer["upsample.kernel"], up=2, pad=(2, 1)) + colors(layer, x, codes[:, i + 2])
    return skip


def styled_conv(layer: Tensors, x: Array, style: Array, noise: Array) -> Array:
    x = modulated_conv(layer.at("conv"), x, style) + layer["noise.weight"] * noise
    return fused_leaky(x + layer["activate.bias"][:, None, None])


def colors(layer: Tensors, x: Array, style: Array) -> Array:
    return modulated_conv(layer.at("conv"), x, style, demodulate=False) + layer["bias"]


def modulated_conv(layer: Tensors, x: Array, style: Array, *, demodulate: bool = True) -> Array:
    """Convolve each sample with its own weights, doubling the resolution if the layer has a blur."""
    kernel = layer["blur.kernel"] if layer.has("blur.") else None
    scales = equal_linear(layer.at("modulation"), style)  # [N, I]
    return modulate_and_convolve(x, layer["weight"][0], scales, up=kernel, demodulate=demodulate)


def modulate_and_convolve(
    x: Array, weight: Array, scales: Array, *, up: Array | None = None, demodulate: bool = True
) -> Array:
    """Do what `modulated_conv` does with given scales [N, I] and an unscaled weight [O, I, k, k]."""
    weight = weight / np.sqrt(weight[0].size)
    results = []
    for sample, scale in zip(x[:, None], scales, strict=True):  # sample [1, I, H, W], scale [I]
        own = weight * scale[:, None, None]
        if demodulate:
            own = own / np.sqrt((own**2).sum(axis=(1, 2, 3), keepdims=True) + 1e-8)
        if up is None:
            results.append(correlate(sample, own, padding=weight.shape[2] // 2))
        else:
            spread = add_zeros(zeros_between(sample, 2)[:, :, :-1, :-1], (2, 2))  # a transposed convolution
            results.append(upfirdn(correlate(spread, own[:, :, ::-1, ::-1]), up, pad=(1, 1)))
    return np.concatenate(results)


def upfirdn(x: Array, kernel: Array, *, up: int = 1, pad: tuple[int, int]) -> Array:
    """Upsample by zeros, pad, filter: upfirdn2d of the public code, whose filter is a true convolution."""
    x = add_zeros(zeros_between(x, up), pad)
    flipped = kernel[::-1, ::-1]
    return np.einsum("nchwij,ij->nchw", sliding_window_view(x, kernel.shape, axis=(2, 3)), flipped)


def zeros_between(x: Array, up: int) -> Array:
    """Put up - 1 zeros after every pixel."""
    result = np.zeros((*x.shape[:2], x.shape[2] * up, x.shape[3] * up))
    result[:, :, ::up, ::up] = x
    return result


# Common to both.


def correlate(x: Array, weight: Array, *, stride: int = 1, padding: int = 0) -> Array:
    """Convolve [N, I, H, W] by [O, I, k, k], as networks use the word: the kernel is not flipped."""
    windows = sliding_window_view(add_zeros(x, (padding, padding)), weight.shape[2:], axis=(2, 3))
    return np.moveaxis(np.tensordot(windows[:, :, ::stride, ::stride], weight, [(1, 4, 5), (1, 2, 3)]), 3, 1)


def add_zeros(x: Array, before_after: tuple[int, int]) -> Array:
    return np.pad(x, ((0, 0), (0, 0), before_after, before_after))


def equal_linear(layer: Tensors, x: Array, *, lr_mul: float = 1.0) -> Array:
    """Multiply by weights whose factor 1 / sqrt(inputs) is applied at run time."""
    return x @ (layer["weight"].T * lr_mul / np.sqrt(x.shape[1])) + layer["bias"] * lr_mul


def leaky(x: Array, slope: float) -> Array:
    return np.where(x >= 0, x, x * slope)


def fused_leaky(x: Array) -> Array:
    return leaky(x, 0.2) * np.sqrt(2)
