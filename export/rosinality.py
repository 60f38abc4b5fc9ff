"""StyleGAN2 generators in the naming of rosinality/stylegan2-pytorch: ``{g_ema, latent_avg?, args?}``."""

from collections.abc import Mapping
from typing import Any

from export.architecture import generator_config
from export.contents import Contents, GeneratorPart
from export.official import check_size, options_of
from export.tensors import as_tensor, as_tensors


def read(root: Mapping[str, Any], source: str) -> Contents:
    """Return the averaged generator of a training or converted file; the networks beside it are not read."""
    tensors = as_tensors(root["g_ema"])
    config = generator_config(tensors)
    check_size(options_of(root.get("args")), config.size, names=("size",))
    latent_avg = root.get("latent_avg")
    return Contents(
        source=source,
        source_format="rosinality",
        generator=GeneratorPart(config=config, tensors=tensors, prefix="g_ema."),
        latent_avg=None if latent_avg is None else as_tensor(latent_avg, "latent_avg"),
    )
