"""The settings of joint training."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from psp_rt.errors import InputError
from trainer import recipe as recipes
from trainer.losses.criterion import LossWeights
from trainer.networks import MOST_CHANNELS, EncoderConfig, GeneratorConfig
from trainer.recipe import LEAST_PIXELS, Recipe

TASKS = {"sketch": "gray", "inversion": "rgb", "super-resolution": "rgb"}  # task -> kind of input
FACTORS = (2, 4, 8)  # of super-resolution: how many times smaller than shown the input may be
CHANNELS = (192, 192, 128, 64, 32, 16)  # of the generator at 4x4, 8x8, ... 128x128
SIZES = (32, 64, 128)
SMALL = (
    "size=32",
    "input_size=32",
    "images=60000",
    "adversarial_from=50000",
    "report_images=5000",
)  # for a CPU


def small_generator(size: int) -> GeneratorConfig:
    """Return the sizes of a small generator of pictures of 32, 64 or 128 pixels a side."""
    return GeneratorConfig(channels=_default_channels(size), style_dim=128, mapping_layers=4)


def _default_channels(size: int) -> tuple[int, ...]:
    if size not in SIZES:
        raise InputError(
            f"size is {size}; expected one of {', '.join(map(str, SIZES))}, or --set channels=..."
        )
    return CHANNELS[: (size // 4).bit_length()]


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """Settings of one run.

    Args:
        size: Side of the pictures in pixels: 32, 64 or 128, or what `channels` are for.
        channels: Channels of the generator at 4x4, 8x8, ...; by default those of a small generator.
        style_dim: Length of a style.
        mapping_layers: Layers from z to w.
        input_size: Side in pixels of what the encoders read.
        discriminator: Channels of each head of the discriminator.
        tasks: One encoder is trained for each; all share the generator.
        widths: Of the encoders, see `EncoderConfig`.
        depths: Likewise.
        head_width: Likewise.
        batch: Photos that one process shows each encoder per step.
        random: Pictures of random latents that the discriminator sees in addition.
        learning_rate: Of the encoders' weights.
        scaled_learning_rate: Of weights of unit size, which are scaled at run time.
        discriminator_rate: Of the discriminator.
        warmup_images: Photos over which the rates rise.
        l2: Weight of the mean squared difference.
        lpips: Weight of LPIPS.
        closer: Weight of a second look at eyes, nose and mouth, enlarged, relative to the look at the whole
            picture, for LPIPS and for the discriminator. Faces must be aligned like FFHQ's.
        border: Weight of the difference of steps along the border; 0.5 removes the rim.
        identity: Weight of 1 - cosine of the faces' embeddings, for all tasks but sketch; needs --identity.
        shared: Share of the codes whose later rows are replaced by the mean row.
        adversarial: Weight of the discriminator's score, from `adversarial_from` on.
        adversarial_from: Photos after which the discriminator takes part.
        adversarial_speed: Factor on the rates of encoders and generator from then on.
        images: Photos to show in all.
        report_images: Photos between two reports, each with checkpoints and a sheet.
        seed: Of all random numbers.
        halflife_images: Of the running average, which is what gets exported.
    """

    size: int = 64
    channels: tuple[int, ...] = ()
    style_dim: int = 128
    mapping_layers: int = 4
    input_size: int = 64
    discriminator: int = 64
    tasks: tuple[str, ...] = ("sketch", "inversion")
    widths: tuple[int, int, int, int] = (24, 48, 96, 96)
    depths: tuple[int, int, int, int] = (1, 2, 2, 1)
    head_width: int = 64
    batch: int = 8
    random: int = 4
    learning_rate: float = 2e-3
    scaled_learning_rate: float = 8e-3
    discriminator_rate: float = 2e-3
    warmup_images: int = 3_000
    l2: float = 1.0
    lpips: float = 0.8
    closer: float = 0.0
    border: float = 0.0
    identity: float = 0.0
    shared: float = 0.3
    adversarial: float = 0.1
    adversarial_from: int = 40_000
    adversarial_speed: float = 0.2
    images: int = 300_000
    report_images: int = 10_000
    seed: int = 0
    halflife_images: float = 10e3

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", self.channels or _default_channels(self.size))
        if 2 ** (len(self.channels) + 1) != self.size:
            raise InputError(
                f"channels has {len(self.channels)} widths, for {2 ** (len(self.channels) + 1)} pixels; "
                f"for size {self.size} give one for each of 4x4, 8x8, ... {self.size}x{self.size}"
            )
        for name, most in {"style_dim": MOST_CHANNELS, "mapping_layers": 64}.items():
            if not 1 <= getattr(self, name) <= most:
                raise InputError(f"{name} is {getattr(self, name)}; expected 1 to {most}")
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks:
            raise InputError(f"the tasks are {self.tasks}; expected one or more of {', '.join(TASKS)}")
        for name in ("batch", "images", "report_images", "warmup_images", "discriminator", "head_width"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("widths", "depths"):
            sizes = getattr(self, name)
            if len(sizes) != 4 or min(sizes) < 1:
                raise InputError(f"{name} are {list(sizes)}, expected four numbers from 1 up")
        if self.input_size < LEAST_PIXELS or self.input_size % 16:
            raise InputError(
                f"input_size is {self.input_size}, expected a multiple of 16 from {LEAST_PIXELS} up"
            )

    @property
    def generator(self) -> GeneratorConfig:
        """Sizes of the generator."""
        return GeneratorConfig(
            channels=self.channels, style_dim=self.style_dim, mapping_layers=self.mapping_layers
        )

    def rate_at(self, images_seen: int) -> float:
        """Return the factor on the rates: it rises at first and falls in the last quarter."""
        rise = min(1.0, (images_seen + 1) / self.warmup_images)
        fall = min(1.0, max(0.05, 4 * (1 - images_seen / self.images)))
        return rise * fall * (self.adversarial_speed if self.is_adversarial(images_seen) else 1.0)

    def is_adversarial(self, images_seen: int) -> bool:
        """Return whether the discriminator takes part."""
        return images_seen >= self.adversarial_from

    def encoder(self, task: str) -> EncoderConfig:
        """Return the encoder that fits the generator."""
        return EncoderConfig(
            num_styles=self.generator.num_styles,
            input_channels=1 if TASKS[task] == "gray" else 3,
            input_height=self.input_size,
            input_width=self.input_size,
            style_dim=self.generator.style_dim,
            widths=self.widths,
            depths=self.depths,
            head_width=self.head_width,
        )

    def recipe(self, task: str) -> Recipe:
        """Return the settings of one task as a recipe, for its data and for `python -m trainer evaluate`."""
        weights = LossWeights(l2=self.l2, lpips=self.lpips, identity=0, w_norm=0)
        found = replace(
            recipes.default(task),
            losses=weights,
            input_size=self.input_size,
            widths=self.widths,
            depths=self.depths,
            head_width=self.head_width,
            noise="none",
            start_from_average=False,
            optimizer="adam",
            learning_rate=self.learning_rate,
            batch=self.batch,
            precision="bf16",
            images=self.images,
            seed=self.seed,
            factors=FACTORS if task == "super-resolution" else (),
        )
        return recipes.with_sizes(found, self.generator)


def read(path: Path | None = None, changes: Iterable[str] = ()) -> JointConfig:
    """Read settings from a TOML file, if there is one, with changes like ``size=128`` applied."""
    values = recipes.read_values(path, changes)
    return JointConfig(**recipes.typed(JointConfig, values, str(path or "--set")))
