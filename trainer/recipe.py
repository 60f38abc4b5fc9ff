"""The settings of a training: how users write them, and the recipe of each task of the paper.

A recipe, `recipes/TASK.toml`, contains only what differs from the defaults below, which are the official
values. Users copy one and pass it as ``--recipe``, or change single values with ``--set``:

    python -m trainer encoder --task sketch --set batch=16 --set losses.w_norm=0 ...

Generators and joint training read their settings the same way (`read_values`, `typed`).
"""

import difflib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from psp_rt.errors import InputError
from trainer.losses.criterion import LossWeights, LpipsNetwork
from trainer.networks import MOST_CHANNELS, EncoderConfig, EncoderKind, GeneratorConfig, Noise

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TASKS = (
    "inversion",
    "frontalization",
    "sketch",
    "segmentation",
    "super-resolution",
    "inpainting",
    "toonify",
)
FOLDER = Path(__file__).parent / "recipes"
SMALL = (  # changes for a CPU: 64 pixels, a small backbone, an hour or two
    "input_size=64",
    "loss_size=64",
    "widths=[24, 48, 96, 96]",
    "depths=[1, 2, 2, 1]",
    "head_width=64",
    "optimizer=adam",
    "learning_rate=1e-3",  # ten times the official one, since the backbone starts from random weights
    "batch=32",
    "precision=bf16",
    "images=100000",
    "report_images=5000",
)
LEAST_PIXELS = 32  # of an encoder's input: the coarsest map has two pixels then
MOST_PIXELS = 4096  # of an input; beyond any model
Source = Literal["photo", "sketch", "low-resolution", "masked", "pairs"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of an encoder's training.

    Args:
        task: A name, which is stored in the exported file.
        kind: What the encoder reads: RGB, one channel in [0, 1], or label maps.
        source: How the input is made from the photo; ``pairs`` reads it from a folder.
        mirror: Mirror half of the pairs: source and target ``together``, or each ``apart``; or ``none``.
        factors: For ``low-resolution``: how many times smaller the input may be.
        labels: For ``labels``: how many there are.
        losses: The weight of each loss.
        lpips_network: Features that LPIPS compares.
        loss_size: Side in pixels at which pictures are compared; larger ones are pooled.
        encoder: The kind of encoder.
        input_size: Side in pixels of what the encoder reads.
        widths: Of the encoder, see `EncoderConfig`.
        depths: Likewise.
        head_width: Likewise.
        noise: What the generator adds during training.
        start_from_average: The encoder outputs the difference from the generator's mean style.
        optimizer: Ranger is RAdam with Lookahead and centered gradients.
        learning_rate: Constant.
        batch: Images per step, over all processes.
        parts: A process computes its share of the batch in so many parts, to save memory.
        precision: ``bf16`` computes convolutions in bfloat16; weights stay FP32.
        images: Images to train on in all.
        report_images: Images between two reports, each with a checkpoint and a sheet.
        halflife_images: Of the running average of the weights, which is what gets exported.
        seed: Of all random numbers.
    """

    task: str
    kind: Literal["rgb", "gray", "labels"]
    source: Source
    mirror: Literal["together", "apart", "none"]
    factors: tuple[int, ...] = ()
    labels: int | None = None
    losses: LossWeights = field(default_factory=LossWeights)
    lpips_network: LpipsNetwork = "alex"
    loss_size: int = 256
    encoder: EncoderKind = "psp"
    input_size: int = 256
    widths: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (3, 4, 14, 3)
    head_width: int = 512
    noise: Noise = "random"
    start_from_average: bool = True
    optimizer: Literal["ranger", "adam"] = "ranger"
    learning_rate: float = 1e-4
    batch: int = 8
    parts: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    images: int = 4_000_000
    report_images: int = 10_000
    halflife_images: float = 10e3
    seed: int = 0

    def __post_init__(self) -> None:
        problem = next((message for wrong, message in self._problems() if wrong), None)
        if problem:
            raise InputError(f"the recipe of {self.task} is not possible: {problem}")

    def _problems(self) -> Iterable[tuple[bool, str]]:
        counts = ("batch", "parts", "images", "report_images", "loss_size", "head_width")
        for name in counts:
            yield getattr(self, name) < 1, f"{name} is {getattr(self, name)}, expected at least 1"
        yield (
            not 0 < self.learning_rate < float("inf"),
            f"learning_rate is {self.learning_rate}, expected a finite number above 0",
        )
        yield (
            not 0 <= self.halflife_images < float("inf"),
            f"halflife_images is {self.halflife_images}, expected a finite number from 0 up",
        )
        yield not 0 <= self.seed < 2**63, f"seed is {self.seed}, expected 0 to 2^63 - 1"
        for name in ("widths", "depths"):
            sizes = getattr(self, name)
            yield (
                not all(1 <= size <= MOST_CHANNELS for size in sizes),
                f"{name} are {list(sizes)}, expected numbers from 1 to {MOST_CHANNELS}",
            )
        yield (
            self.head_width > MOST_CHANNELS,
            f"head_width is {self.head_width}, expected {MOST_CHANNELS} or less",
        )
        yield (
            self.input_size > MOST_PIXELS,
            f"input_size is {self.input_size}, expected {MOST_PIXELS} or less",
        )
        yield self.batch % self.parts != 0, f"batch {self.batch} is not a multiple of parts {self.parts}"
        yield (
            self.input_size < LEAST_PIXELS or self.input_size % 16 != 0,
            (f"input_size is {self.input_size}, expected a multiple of 16 from {LEAST_PIXELS} up"),
        )
        yield len(self.widths) != 4 or len(self.depths) != 4, "widths and depths need four values each"
        yield (
            self.kind == "labels" and not 2 <= (self.labels or 0) <= 256,
            (f"kind is labels, but their number is {self.labels}; give it with --set labels=19"),
        )
        yield (
            self.kind == "labels" and self.source != "pairs",
            ('label maps cannot be made from photos: source must be "pairs"'),
        )
        yield self.kind != "labels" and self.labels is not None, f"kind is {self.kind}, which has no labels"
        yield self.source == "sketch" and self.kind != "gray", 'sketches have kind "gray"'
        yield (
            self.kind == "gray" and self.source not in ("sketch", "pairs"),
            (f"kind gray cannot be made by source {self.source}"),
        )
        yield (
            self.source == "low-resolution"
            and not all(1 <= factor <= self.input_size // 2 for factor in self.factors or (0,)),
            f"factors are {list(self.factors)}, expected numbers from 1 to {self.input_size // 2}",
        )

    @property
    def input_channels(self) -> int:
        """Channels that the encoder reads."""
        return {"rgb": 3, "gray": 1, "labels": self.labels or 0}[self.kind]

    def encoder_config(self, generator: GeneratorConfig) -> EncoderConfig:
        """Return the sizes of the encoder that fits a generator."""
        w1, w2, w3, w4 = self.widths
        d1, d2, d3, d4 = self.depths
        return EncoderConfig(
            kind=self.encoder,
            num_styles=generator.num_styles,
            input_channels=self.input_channels,
            input_height=self.input_size,
            input_width=self.input_size,
            style_dim=generator.style_dim,
            widths=(w1, w2, w3, w4),
            depths=(d1, d2, d3, d4),
            head_width=self.head_width,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as `config.json` has them."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }


def read(path: Path, changes: Iterable[str] = ()) -> Recipe:
    """Read a recipe file and apply changes like ``batch=16`` and ``losses.identity=0``."""
    return parse(read_values(path, changes), name=str(path))


def default(task: str, changes: Iterable[str] = ()) -> Recipe:
    """Return the paper's recipe of a task."""
    return read(FOLDER / f"{task}.toml", changes)


def parse(values: Mapping[str, Any], *, name: str) -> Recipe:
    """Build a recipe from plain values; `name` is for messages."""
    losses = values.get("losses", {})
    if not isinstance(losses, Mapping):
        raise InputError(f"{name}: losses is {losses!r}, expected a table of weights")
    own = typed(Recipe, {key: value for key, value in values.items() if key != "losses"}, name)
    return Recipe(**own, losses=LossWeights(**typed(LossWeights, losses, f"{name}, losses")))


def with_sizes(recipe: Recipe, generator: GeneratorConfig) -> Recipe:
    """Return the recipe for a generator, whose pictures may be smaller than the size of the losses."""
    return replace(recipe, loss_size=min(recipe.loss_size, generator.size))


def read_values(path: Path | None, changes: Iterable[str] = ()) -> dict[str, Any]:
    """Return the settings in a TOML file, if there is one, with changes like ``batch=16`` applied."""
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(
                f"{path} cannot be read as settings: {error}; see {FOLDER} for examples"
            ) from error
    for change in changes:
        for name, value in parse_change(change).items():
            known = values.get(name)
            values[name] = known | value if isinstance(value, dict) and isinstance(known, dict) else value
    return values


def parse_change(change: str) -> dict[str, Any]:
    """Parse one ``NAME=VALUE`` of a command line; VALUE is as in TOML, and words need no quotes."""
    key, equals, value = change.partition("=")
    try:
        if equals:
            return tomllib.loads(f"{key}={value}")
    except tomllib.TOMLDecodeError:
        try:
            return tomllib.loads(f'{key}="{value}"')
        except tomllib.TOMLDecodeError:
            pass
    raise InputError(f"--set {change} cannot be parsed; expected NAME=VALUE, as in --set batch=16")


def typed(kind: type, values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Check values against the fields of a dataclass and convert them; `name` is for messages."""
    hints = get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        known = _suggestion(unknown[0], hints) or f"known are {', '.join(hints)}"
        raise InputError(f"{name} has the unknown setting {unknown[0]}; {known}")
    required = [each for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING]
    missing = [each.name for each in required if each.name not in values]
    if missing:
        raise InputError(f"{name} has no value for {missing[0]}")
    return {key: _value(value, hints[key], f"{name}: {key}") for key, value in values.items()}


def _suggestion(unknown: str, hints: Mapping[str, Any]) -> str:
    """Return a question with the name that was probably meant; empty without a guess."""
    tables = [name for name, hint in hints.items() if is_dataclass(hint)]
    inside = [name for name in tables if unknown in (each.name for each in fields(hints[name]))]
    near = [f"{inside[0]}.{unknown}"] if inside else difflib.get_close_matches(unknown, hints, n=1)
    return f"did you mean {near[0]}?" if near else ""


def _value(value: Any, hint: Any, name: str) -> Any:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise InputError(f"{name} is {value!r}, expected one of {', '.join(map(repr, get_args(hint)))}")
        return value
    if get_origin(hint) is tuple:
        kind = get_args(hint)[0]
        if not isinstance(value, list) or not all(type(each) is kind for each in value):
            what = "words" if kind is str else "whole numbers"
            raise InputError(f"{name} is {value!r}, expected a list of {what}")
        return tuple(value)
    allowed = get_args(hint) or (hint,)
    if float in allowed and type(value) is int:
        return float(value)
    if type(value) not in allowed:
        wanted = " or ".join(getattr(each, "__name__", str(each)) for each in allowed)
        raise InputError(f"{name} is {value!r}, expected {wanted}")
    return value
