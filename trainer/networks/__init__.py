"""Network definitions, shared by the trainer and the export.

Shape legend of the whole project: N images per batch, H x W input pixels, S output side,
C channels, L styles (rows of a W+ code), D style dimension.

Parameter names are those of the public checkpoints, so that ``load_state_dict`` reads an
official file as it is.
"""

from trainer.networks.encoders import Encoder, EncoderConfig, EncoderKind, Translation, draw_head_weights
from trainer.networks.generator import Generator, GeneratorConfig, Noise, official_channels

MOST_CHANNELS = 8192  # beyond any model; a typo or a hostile file could fill the memory

__all__ = [
    "MOST_CHANNELS",
    "Encoder",
    "EncoderConfig",
    "EncoderKind",
    "Generator",
    "GeneratorConfig",
    "Noise",
    "Translation",
    "draw_head_weights",
    "official_channels",
]
