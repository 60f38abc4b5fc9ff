"""The description of an engine: ``manifest.json``.

    format, version    "psp_rt.engine", 1; other versions are refused
    task               free text: inversion, sketch, segmentation, ...
    input              kind, height, width, resize (and labels, for label maps); null without an encoder
    output             height and width of the pictures
    num_styles         L, the rows of a code [L, D]
    style_dim          D
    noise              "const", "random" or "none"
    precision          of builds for a GPU; with "fp16" the file also holds FP16 graphs
    alignment          "ffhq": the encoder expects faces cut as FFHQ's are; "none": any picture; may be absent
    default_layers     the paper's layers that random styles replace, such as "3-"; may be absent
    strange_above      codes farther than this from those of usual pictures (`psp_rt.engine.statistics`)
                       mean that a picture is unlike those that the model is for; may be absent
    fp32_layers        for each FP16 graph, the nodes kept in FP32 because FP16 would overflow; may be absent
    weights            how the file stores the weights
    provenance         where the model comes from, text to text
    parity             how close the export is to its checkpoint, text to number
    stripped           the graphs were removed and only plans are left; may be absent
    members            SHA-256 and size of every other member

Unknown fields are ignored, so that later files can add some; a change of a file's meaning raises its
version.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from ..errors import FormatError
from ..style import DEFAULT_LAYERS
from .fields import Fields

FORMAT = "psp_rt.engine"
VERSION = 1
INPUT_KINDS = ("rgb", "gray", "labels")
RESIZES = ("bilinear", "nearest")
NOISES = ("const", "random", "none")
PRECISIONS = ("fp32", "fp16")
ALIGNMENTS = ("ffhq", "none")
MAX_SIDE = 16384  # pixels; a manifest must not be able to ask for terabytes
MAX_STYLES = 64
MAX_STYLE_DIM = 65536


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What the encoder takes: uint8 [N, height, width, channels]."""

    kind: str
    height: int
    width: int
    labels: int | None = None
    resize: str = "bilinear"

    @property
    def channels(self) -> int:
        """Return the number of channels: 3 for RGB, else 1."""
        return 3 if self.kind == "rgb" else 1


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """The size of a picture in pixels."""

    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Member:
    """The hash and the size in bytes of one member of the file."""

    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an engine file holds; see the module's docstring for the fields."""

    task: str
    input: InputSpec | None
    output: ImageSize
    num_styles: int
    style_dim: int
    noise: str = "const"
    precision: str = "fp32"
    weights: str = "fp32"
    provenance: Mapping[str, str] = field(default_factory=dict)
    parity: Mapping[str, float] = field(default_factory=dict)
    members: Mapping[str, Member] = field(default_factory=dict)
    fp32_layers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    stripped: bool = False
    alignment: str | None = None
    default_layers: str | None = None
    strange_above: float | None = None

    @property
    def expects_faces(self) -> bool:
        """Return whether the encoder takes photos of faces that are aligned as FFHQ's are."""
        return self.alignment == "ffhq" and self.input is not None and self.input.kind == "rgb"

    @property
    def style_layers(self) -> str:
        """The paper's layers that styles replace unless a user says otherwise."""
        return self.default_layers or DEFAULT_LAYERS

    def to_json(self) -> str:
        """Return the manifest as JSON text."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=2) + "\n"

    @staticmethod
    def from_json(data: bytes | str) -> Manifest:
        """Read a manifest.

        Raises:
            FormatError: The text is not JSON, or a field is missing, of another type or out of range.
        """
        fields = Fields.parse(data, source="manifest.json", remedy="export the engine again")
        _check_version(fields)
        given = fields.value("input")
        return Manifest(
            task=fields.text("task"),
            input=None if given is None else _input_spec(fields.group("input")),
            output=_image_size(fields.group("output")),
            num_styles=fields.whole("num_styles", 1, MAX_STYLES),
            style_dim=fields.whole("style_dim", 1, MAX_STYLE_DIM),
            noise=fields.choice("noise", NOISES),
            precision=fields.choice("precision", PRECISIONS),
            weights=fields.choice("weights", PRECISIONS),
            provenance=fields.group("provenance").texts(),
            parity=fields.group("parity").numbers(),
            members=_members(fields.group("members")),
            fp32_layers=_fp32_layers(fields),
            stripped=fields.optional("stripped") is True,
            alignment=_optional(fields, "alignment", ALIGNMENTS),
            default_layers=_layers(fields),
            strange_above=_limit(fields),
        )


def _check_version(fields: Fields) -> None:
    found = fields.text("format")
    if found != FORMAT:
        raise FormatError(f"manifest.json: format is {found!r}; expected {FORMAT!r}")
    version = fields.whole("version", 0, 10**9)
    if version != VERSION:
        raise FormatError(
            f"manifest.json: version is {version}, this psp_rt reads version {VERSION}; "
            + ("upgrade with: pip install -U psp_rt" if version > VERSION else "export the engine again")
        )


def _input_spec(fields: Fields) -> InputSpec:
    kind = fields.choice("kind", INPUT_KINDS)
    if kind != "labels" and fields.optional("labels") is not None:
        raise FormatError(
            f"manifest.json: input.labels is given for kind {kind!r}; only label maps have labels"
        )
    return InputSpec(
        kind=kind,
        height=fields.whole("height", 1, MAX_SIDE),
        width=fields.whole("width", 1, MAX_SIDE),
        labels=fields.whole("labels", 1, 256) if kind == "labels" else None,
        resize=fields.choice("resize", RESIZES),
    )


def _image_size(fields: Fields) -> ImageSize:
    return ImageSize(height=fields.whole("height", 1, MAX_SIDE), width=fields.whole("width", 1, MAX_SIDE))


def _members(fields: Fields) -> dict[str, Member]:
    members = {}
    for name in fields.names:
        entry = fields.group(name)
        sha256 = entry.text("sha256")
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise FormatError(
                f"manifest.json: {entry.where}sha256 is {sha256[:80]!r}; expected 64 hex digits"
            )
        members[name] = Member(sha256=sha256, size=entry.whole("size", 0, 2**63 - 1))
    return members


def _optional(fields: Fields, name: str, choices: tuple[str, ...]) -> str | None:
    return None if fields.optional(name) is None else fields.choice(name, choices)


def _layers(fields: Fields) -> str | None:
    if fields.optional("default_layers") is None:
        return None
    layers = fields.text("default_layers", longest=60)
    if not re.fullmatch(r"[0-9][0-9,\- ]*", layers):
        raise FormatError(f"manifest.json: default_layers is {layers!r}; expected layers, such as '3-'")
    return layers


def _limit(fields: Fields) -> float | None:
    if fields.optional("strange_above") is None:
        return None
    limit = fields.number("strange_above")
    if limit <= 0:
        raise FormatError(f"manifest.json: strange_above is {limit}; expected a number above 0")
    return limit


def _fp32_layers(fields: Fields) -> dict[str, tuple[str, ...]]:
    if fields.optional("fp32_layers") is None:  # absent in files from before FP16
        return {}
    group = fields.group("fp32_layers")
    return {name: group.list_of_texts(name) for name in group.names}
