"""Everything that decides the outcome of joint training."""

from dataclasses import dataclass, field, replace

from psp_rt.errors import InputError
from trainer import recipe as tasks
from trainer.data.joint_pairs import FACTORS, TASKS
from trainer.losses.criterion import LossWeights
from trainer.networks import EncoderConfig, GeneratorConfig
from trainer.recipe import LEAST_PIXELS, Recipe

CHANNELS = (192, 192, 128, 64, 32, 16)  # of the generator at 4x4, 8x8, ... 128x128


def generator_of(size: int) -> GeneratorConfig:
    """Return a small generator of pictures of 32, 64 or 128 pixels a side."""
    return GeneratorConfig(channels=CHANNELS[: (size // 4).bit_length()], style_dim=128, mapping_layers=4)


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """Settings of one run.

    Args:
        tasks: One encoder is trained for each; all share the generator.
        input_size: Pixels a side of what the encoders read.
        discriminator: Channels of each head of the discriminator.
        batch: Photos that one process shows each encoder in a step.
        random: Pictures of random latents that the discriminator sees beside those.
        learning_rate: Of the encoders' weights.
        scaled_learning_rate: Of weights of unit size, which a factor scales at run time.
        discriminator_rate: Of the discriminator.
        shared: Part of the codes whose later rows are replaced by the mean row.
        closer: How much a look at eyes, nose and mouth alone, enlarged, counts beside the one at the whole
            picture, for LPIPS and for the discriminator. Faces must be aligned as FFHQ's are.
        adversarial: Weight of the discriminator's judgement; from `adversarial_from` on.
        adversarial_from: Photos after which the discriminator joins in.
        adversarial_speed: Part of the learning rates that then remains for encoders and generator.
        images: Photos to show in all.
        halflife_images: Of the running average, which is what gets exported.
    """

    generator: GeneratorConfig = field(default_factory=lambda: generator_of(64))
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
    shared: float = 0.3
    adversarial: float = 0.1
    adversarial_from: int = 40_000
    adversarial_speed: float = 0.2
    images: int = 300_000
    seed: int = 0
    halflife_images: float = 10e3

    def __post_init__(self) -> None:
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks:
            raise InputError(f"the tasks are {self.tasks}; expected one or more of {', '.join(TASKS)}")
        for name in ("batch", "images", "warmup_images", "discriminator", "head_width"):
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

    def rate_at(self, images_seen: int) -> float:
        """Return the part of the rates in force: it rises at first, and falls in the last quarter."""
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
        """Return what the run did for a task, as `python -m trainer evaluate` reads it."""
        weights = LossWeights(l2=self.l2, lpips=self.lpips, identity=0, w_norm=0)
        found = replace(
            tasks.default(task),
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
            factors=FACTORS if task == "super-resolution" else (),
        )
        return tasks.with_sizes(found, self.generator)
