"""StyleGAN2 generators in the naming of rosinality/stylegan2-pytorch: ``{g_ema, latent_avg?, args?}``.

Files of `export.convert` may also hold ``conv_clamp``.
"""

from collections.abc import Mapping
from typing import Any

from export.checkpoints.architecture import generator_config
from export.checkpoints.contents import Contents, GeneratorPart
from export.checkpoints.formats import check_size, options_of
from export.checkpoints.tensors import as_tensor, as_tensors
from export.errors import CheckpointError


def read(root: Mapping[str, Any], source: str) -> Contents:
    """Return the averaged generator of a training or converted file; the networks beside it are not read."""
    tensors = as_tensors(root["g_ema"])
    clamp = root.get("conv_clamp")
    if clamp is not None and not (isinstance(clamp, int | float) and clamp > 0):
        raise CheckpointError(f"conv_clamp is {clamp!r:.40}; expected a number above 0")
    config = generator_config(tensors, conv_clamp=clamp)
    check_size(options_of(root.get("args")), config.size, names=("size",))
    latent_avg = root.get("latent_avg")
    return Contents(
        source=source,
        source_format="rosinality",
        generator=GeneratorPart(config=config, tensors=tensors, prefix="g_ema."),
        latent_avg=None if latent_avg is None else as_tensor(latent_avg, "latent_avg"),
    )
