"""Settings for networks that train in minutes, and in seconds."""

from trainer.networks import GeneratorConfig

SMALL = (  # for generators of 64 pixels and a budget of minutes
    "input_size=64",
    "widths=[24, 48, 96, 96]",
    "depths=[1, 2, 2, 1]",
    "head_width=64",
    "optimizer=adam",
    "learning_rate=1e-3",
    "batch=32",
    "precision=bf16",
)
TINY = (
    "input_size=32",
    "widths=[8, 8, 8, 8]",
    "depths=[1, 1, 1, 1]",
    "head_width=8",
    "batch=4",
)
TINY_GENERATOR = GeneratorConfig(channels=(8, 8, 8, 8), style_dim=12, mapping_layers=2)  # 32 pixels
