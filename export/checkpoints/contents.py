"""What one checkpoint file holds, in one form for all formats."""

from dataclasses import dataclass

from torch import Tensor

from export.checkpoints.tensors import Tensors
from psp_rt.engine.manifest import InputSpec
from trainer.networks import EncoderConfig, EncoderKind, GeneratorConfig


@dataclass(frozen=True, kw_only=True)
class EncoderPart:
    """An encoder: its tensors and all that they do not say.

    Args:
        prefix: What the file puts before each tensor's name; for messages.
        config: Its sizes, where the file states them; None to read them from the tensors.
        wide: It was trained on wide pictures that fill rows S/8 to 7S/8 of a square one (cars).
        uses_average: Its codes are relative to the latent average; None if the file does not say.
    """

    kind: EncoderKind
    tensors: Tensors
    input: InputSpec
    task: str
    prefix: str = "encoder."
    config: EncoderConfig | None = None
    wide: bool = False
    uses_average: bool | None = None


@dataclass(frozen=True, kw_only=True)
class GeneratorPart:
    """A generator: its tensors in this project's names, and its sizes."""

    config: GeneratorConfig
    tensors: Tensors
    prefix: str = "decoder."


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What one file holds.

    Args:
        source: The name of the file, for messages.
        source_format: "psp", "e4e", "rosinality", "stylegan2-ada" or "psp_rt.trainer".
        latent_avg: As the file has it: [L, D], [1, D] or [D].
    """

    source: str
    source_format: str
    encoder: EncoderPart | None = None
    generator: GeneratorPart | None = None
    latent_avg: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """What the user says of an encoder that its file leaves open.

    Args:
        encoder_type: A name that the public code gives its encoders, or a kind of ours.
        input: "rgb", "gray" or "labels:N".
        label_resize: How label maps are brought to the input's size: "bilinear" or "nearest".
    """

    encoder_type: str | None = None
    input: str | None = None
    label_resize: str | None = None
