"""The forms in which callers pass pictures; results are returned in the same form.

    path, bytes, open file, PIL image   PIL image
    uint8 [H, W], [H, W, 1, 3 or 4]     uint8 [H', W', 3]
    uint8 [N, H, W, 3], [N, H, W, 1]    uint8 [N, H', W', 3]
    uint8 [N, H, W], one-channel models uint8 [N, H', W', 3]   (where W is neither 1 nor 3, nor N)
    list or tuple of single pictures    list, each result in the form of its picture

With several styles for each picture (K of them), an array gains an axis [..., K, H', W', 3], and
any other result becomes a list of K. Array results have the channel order of array inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..engine.manifest import InputSpec
from ..errors import InputError
from .decode import is_source
from .pixels import Pixels, check_array, sized_input, swap_channels

_CUDA_MEMORY = (2, 13)  # DLPack's kDLCUDA and kDLCUDAManaged


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures ready for the encoder, and the form in which they were passed."""

    pixels: Pixels  # [N, height, width, channels]
    sizes: tuple[tuple[int, int], ...]  # of each picture before it was resized, (height, width)
    container: str  # "one", "array" or "list"
    arrays: tuple[bool, ...]  # for each picture: whether it was an array
    color: str

    @property
    def from_bgr(self) -> bool:
        """Whether there are arrays among them that were read as BGR."""
        return self.color == "bgr" and any(self.arrays) and self.pixels.shape[-1] == 3

    def restore(self, results: Pixels, out: Pixels | None = None) -> Any:
        """Return results, RGB [N, H, W, 3] or [N, K, H, W, 3], in the form of the input."""
        if self.container == "array" or (self.container == "one" and self.arrays[0]):
            return to_array(results if self.container == "array" else results[0], self.color, out)
        if out is not None:
            raise InputError(
                "out= takes the results of NumPy arrays only; leave it out for paths, PIL images and lists"
            )
        restored = [
            to_array(result, self.color) if is_array else to_pil(result)
            for result, is_array in zip(results, self.arrays, strict=True)
        ]
        return restored[0] if self.container == "one" else restored


def is_device_array(value: Any) -> bool:
    """Return whether a value is an array in the memory of an NVIDIA GPU."""
    if isinstance(value, (np.ndarray, type)):
        return False
    try:
        if hasattr(type(value), "__dlpack_device__"):
            return int(value.__dlpack_device__()[0]) in _CUDA_MEMORY
        return getattr(value, "__cuda_array_interface__", None) is not None
    except Exception:  # libraries raise errors of many types for a tensor without memory
        return False


def read_pictures(images: Any, spec: InputSpec, *, color: str) -> Pictures:
    """Return one picture or a batch as the encoder takes it."""
    container, items = ("one", [images]) if is_device_array(images) else _items(images, spec)
    if any(map(is_device_array, items)):
        raise InputError(
            "only run() takes pictures on a GPU, one or a batch as one array: torch.stack(pictures)"
        )
    if not items:
        raise InputError("the batch is empty; pass at least one picture")
    read = [_item(item, index, container, spec, color) for index, item in enumerate(items)]
    arrays = tuple(isinstance(item, np.ndarray) for item in items)
    return Pictures(
        pixels=np.stack([pixels for pixels, _ in read]),
        sizes=tuple(size for _, size in read),
        container=container,
        arrays=arrays,
        color=color,
    )


def to_array(rgb: Pixels, color: str, out: Pixels | None = None) -> Pixels:
    """Return pictures [..., 3] in a channel order, in new memory or in ``out``."""
    out = np.empty(rgb.shape, np.uint8) if out is None else out
    _check_out(out, rgb.shape)
    if color == "bgr":
        return swap_channels(rgb, out)
    np.copyto(out, rgb)
    return out


def _check_out(out: Pixels, shape: tuple[int, ...]) -> None:
    if not isinstance(out, np.ndarray) or out.dtype != np.uint8 or out.shape != shape:
        found = f"{out.dtype} {list(out.shape)}" if isinstance(out, np.ndarray) else type(out).__name__
        raise InputError(f"out must be a uint8 array {list(shape)}, got {found}")
    if not out.flags.writeable:
        raise InputError("out is read-only; pass an array that can be written")


def to_pil(rgb: Pixels) -> Image.Image | list[Image.Image]:
    """Return one picture [H, W, 3], or a list for several [K, H, W, 3]."""
    return Image.fromarray(rgb) if rgb.ndim == 3 else [Image.fromarray(one) for one in rgb]


def _items(images: Any, spec: InputSpec) -> tuple[str, list[Any]]:
    if isinstance(images, (list, tuple)):
        return "list", list(images)
    if is_source(images) or isinstance(images, Image.Image):
        return "one", [images]
    array = check_array(images, spec.kind)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3, 4):
        raise InputError(
            f"{list(array.shape)} may be one picture with its channels first, or a batch of gray ones; pass "
            "image.transpose(1, 2, 0) for the one, batch[..., None] for the other"
        )
    if array.ndim == 4 or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and spec.kind != "rgb"):
        return "array", list(array)
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4):
        raise InputError(
            f"a picture must be [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got {list(array.shape)}; "
            "pass gray pictures for an RGB model as a list"
        )
    return "one", [array]


def _item(
    item: Any, index: int, container: str, spec: InputSpec, color: str
) -> tuple[Pixels, tuple[int, int]]:
    if container == "one":
        return sized_input(item, spec, color=color)
    try:
        return sized_input(item, spec, color=color)
    except InputError as error:
        raise InputError(f"picture {index} of the batch: {error}") from None
