"""Checkpoints of this project's own trainer, read by the code that writes them."""

from collections.abc import Mapping
from typing import Any

from export.checkpoints.contents import Contents, EncoderPart, GeneratorPart, Overrides
from export.checkpoints.inputs import input_spec
from export.errors import CheckpointError
from psp_rt.errors import InputError
from trainer import checkpoint
from trainer.checkpoint import FORMAT

__all__ = ["FORMAT", "read"]


def read(root: Mapping[str, Any], source: str, overrides: Overrides | None) -> Contents:
    """Return what a trainer's file holds."""
    try:
        loaded = checkpoint.parse(root, name=source)
    except (InputError, ValueError) as error:
        raise CheckpointError(str(error).removeprefix(f"{source} ")) from error
    generator = loaded.model.generator
    return Contents(
        source=source,
        source_format=FORMAT,
        encoder=_encoder(loaded, overrides) if overrides else None,
        generator=GeneratorPart(config=generator.config, tensors=generator.state_dict(), prefix="generator."),
        latent_avg=loaded.model.latent_avg,
    )


def _encoder(loaded: checkpoint.Checkpoint, overrides: Overrides) -> EncoderPart:
    encoder, labels = loaded.model.encoder, loaded.input_kind == "labels"
    if overrides.encoder_type not in (None, encoder.config.kind):
        raise CheckpointError(
            f"--encoder-type is {overrides.encoder_type}, but the file says "
            f"{encoder.config.kind}; leave it out"
        )
    spec = input_spec(
        encoder.config.input_channels,
        height=encoder.config.input_height,
        width=encoder.config.input_width,
        declared=f"labels:{loaded.labels}" if labels else loaded.input_kind,
        label_resize="nearest",
        overrides=overrides,
    )
    return EncoderPart(
        kind=encoder.config.kind,
        config=encoder.config,
        tensors=encoder.state_dict(),
        input=spec,
        task=loaded.task,
        uses_average=loaded.model.latent_avg is not None,
    )
