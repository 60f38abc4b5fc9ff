"""Named tensors of a checkpoint: checked, renamed, and put into a network.

The trainer's reader of generators and the export use the same functions, so both read the same files.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from psp_rt.errors import InputError
from trainer.checkpoint_pickle import Opaque
from trainer.networks import Generator, GeneratorConfig, Noise
from trainer.networks.layers import EqualLinear, binomial_kernel

Tensors = Mapping[str, Tensor]
Network = TypeVar("Network", bound=nn.Module)
SHOWN = 8  # problems in one message
WRAPPERS = ("module", "_orig_mod")  # what DataParallel and torch.compile put into names, anywhere
SMALL = 2**22  # bytes; views that need less are never a problem
DUPLICATES = 4  # how often the storages of a file may be used in one network


def as_tensor(value: object, name: str) -> Tensor:
    """Return a value from a file as a dense tensor of numbers, or refuse it."""
    is_numbers = isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
    tensor = torch.from_numpy(value) if is_numbers else value
    if isinstance(value, Opaque) and value.kind in ("a quantized tensor", "a meta tensor"):
        raise InputError(f"{name} is a quantized tensor or a meta tensor without values; save it as float32")
    if not isinstance(tensor, Tensor) or tensor.is_complex() or tensor.layout is not torch.strided:
        raise InputError(f"{name} is a {type(value).__name__}; expected a dense tensor of numbers")
    return tensor.detach()


def unwrapped(name: str) -> str:
    """Return a tensor's name without ``module`` and ``_orig_mod``, which may stand anywhere in it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def named_tensors(values: object) -> dict[str, Tensor]:
    """Return a state dict, without what wrappers put into its names."""
    if not isinstance(values, Mapping):
        raise InputError(f"expected tensors by name, found a {type(values).__name__}")
    found: dict[str, Tensor] = {}
    for full_name, value in values.items():
        name = unwrapped(str(full_name))
        if name in found:
            raise InputError(f"two tensors are called {name}, one of them with {' or '.join(WRAPPERS)} in it")
        found[name] = as_tensor(value, str(full_name))
    return found


def shape(tensors: Tensors, name: str, *, axes: int) -> tuple[int, ...]:
    """Return the shape of a tensor that reveals the architecture."""
    if name not in tensors:
        raise InputError(f"the tensor {name} is missing; without it the architecture is unknown")
    found = tuple(tensors[name].shape)
    if len(found) != axes or 0 in found:
        raise InputError(f"the tensor {name} has shape {found}; expected {axes} axes, none of them empty")
    return found


def count(tensors: Mapping[str, object], start: str) -> int:
    """Return one more than the highest number that follows ``start`` in the names.

    >>> count({"convs.0.weight": ..., "convs.11.weight": ...}, "convs.")
    12
    """
    numbers = [name[len(start) :].split(".")[0] for name in tensors if name.startswith(start)]
    # A hostile file may count to a billion. Longer numbers are left out here and refused later as surplus.
    plausible = [int(number) for number in numbers if number.isdecimal() and len(number) <= 2]
    return max(plausible, default=-1) + 1


def listed(items: list[str]) -> str:
    """Return the first items as text, and how many more follow."""
    more = f"; and {len(items) - SHOWN} more ({len(items)} in all)" if len(items) > SHOWN else ""
    return "; ".join(items[:SHOWN]) + more


def build(create: Callable[[], Network], tensors: Tensors, *, prefix: str, remedy: str = "") -> Network:
    """Return a network in evaluation mode with these tensors, as FP32 and without a copy.

    Args:
        create: Makes the network.
        tensors: By the network's names.
        prefix: What precedes each name in the file, for messages.
        remedy: What to do about a missing tensor.

    Raises:
        InputError: A tensor is missing, surplus or of another shape.
    """
    try:
        # On the meta device: no memory and no random numbers for weights that are replaced anyway.
        with torch.device("meta"):
            network = create()
    except (ValueError, RuntimeError) as error:
        raise InputError(f"it describes a network of impossible sizes: {error}") from error
    expected = network.state_dict()
    given = dict(tensors)
    for name in expected:
        if name.endswith("num_batches_tracked"):  # missing in old files; only training reads it
            given.setdefault(name, torch.zeros((), dtype=torch.long))
    _check_names_and_shapes(expected, given, prefix=prefix, remedy=remedy)
    _check_memory(given, prefix=prefix)
    given = {name: given[name].to(like.dtype).contiguous() for name, like in expected.items()}
    network.load_state_dict(given, assign=True)
    return network.eval().requires_grad_(False)


def check_finite(tensors: Tensors, *, prefix: str) -> None:
    """Raise an error if a tensor contains NaN or infinity."""
    broken = [prefix + name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise InputError(
            f"NaN or infinity in {listed(broken)}; the training run diverged, use an earlier checkpoint"
        )


def _check_names_and_shapes(expected: Tensors, given: Tensors, *, prefix: str, remedy: str) -> None:
    problems = [
        f"{prefix}{name} is missing, expected {tuple(like.shape)}"
        for name, like in expected.items()
        if name not in given
    ]
    hint = f"; {remedy}" if problems and remedy else ""
    for name, tensor in given.items():
        if name not in expected:
            problems.append(f"{prefix}{name} {tuple(tensor.shape)} is surplus")
        elif tensor.shape != expected[name].shape:
            found, wanted = tuple(tensor.shape), tuple(expected[name].shape)
            problems.append(f"{prefix}{name} has shape {found}, expected {wanted}")
    if problems:
        raise InputError(
            f"its tensors do not match the architecture that they imply: {listed(problems)}{hint}"
        )


def _check_memory(tensors: Tensors, *, prefix: str) -> None:
    """Check that views of a few numbers do not become gigabytes when each gets memory of its own."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors.values()}
    held = sum(storage.nbytes() for storage in storages.values())
    needed = sum(tensor.nbytes for tensor in tensors.values())
    if needed > DUPLICATES * held + SMALL:
        raise InputError(
            f"the tensors {prefix}* repeat the same memory: {needed} bytes from {held}; save copies of them"
        )


def generator_config(tensors: Tensors, *, conv_clamp: float | None = None) -> GeneratorConfig:
    """Return the sizes of a StyleGAN2 generator."""
    channels = [shape(tensors, "conv1.activate.bias", axes=1)[0]]
    for resolution in range((count(tensors, "convs.") + 1) // 2):
        channels.append(shape(tensors, f"convs.{2 * resolution + 1}.activate.bias", axes=1)[0])
    return GeneratorConfig(
        channels=tuple(channels),
        style_dim=shape(tensors, "conv1.conv.modulation.weight", axes=2)[1],
        mapping_layers=max(count(tensors, "style.") - 1, 0),
        conv_clamp=conv_clamp,
    )


def conv_clamp(stored: Any) -> float | None:
    """Return the bound on a generator's activations as a file stores it, as a number or as text."""
    if stored is None or stored is False or str(stored).strip().lower() in ("", "none", "null", "false"):
        return None
    try:
        bound = float("nan") if stored is True else float(stored)
    except (TypeError, ValueError):
        bound = float("nan")
    if not 0 < bound < float("inf"):
        raise InputError(f"conv_clamp is {stored!r:.40}; expected a number above 0")
    return bound


def build_generator(
    config: GeneratorConfig, tensors: Tensors, *, prefix: str, noise: Noise = "const", remedy: str = ""
) -> Generator:
    """Return a generator, with the tensors that are constants or unused filled in where the file has none.

    Args:
        config: Its sizes.
        tensors: Under rosinality's names.
        prefix: What precedes each name in the file, for messages.
        noise: How the generator will be used. Noise images are needed for "const" alone, and the strength of
            the noise for "const" and "random".
        remedy: What to do about a missing tensor.
    """
    given = dict(tensors)
    with torch.device("meta"):
        expected = Generator(config).state_dict()
    drawing = torch.Generator().manual_seed(0)
    for name, like in expected.items():
        if name.endswith(".kernel"):  # always this filter; some files leave it out
            given.setdefault(name, binomial_kernel())
        elif name.startswith("noises.") and noise != "const":
            given[name] = torch.randn(like.shape, generator=drawing)
        elif name.endswith(".noise.weight") and noise == "none":
            given[name] = torch.zeros(like.shape)
    return build(lambda: Generator(config), given, prefix=prefix, remedy=remedy)


@torch.no_grad()
def constant_mapping(style: Tensor) -> dict[str, Tensor]:
    """Return a mapping network of one layer that maps every z to one style [D].

    It stands for the mapping network of a file that has none. The layer's activation is
    leaky ReLU times sqrt(2), which is inverted here.
    """
    layer = EqualLinear(style.shape[0], style.shape[0], lr_mul=0.01)
    before = torch.where(style < 0, style / 0.2, style) / 2**0.5
    return {"style.1.weight": torch.zeros_like(layer.weight), "style.1.bias": before / layer.lr_mul}


def plain(value: Any) -> Any:
    """Return a NumPy scalar or a tensor of one number as a plain number, anything else unchanged."""
    one = isinstance(value, Tensor) and value.numel() == 1 and not (value.is_meta or value.is_quantized)
    if one or isinstance(value, np.generic):
        return value.item()
    return value
