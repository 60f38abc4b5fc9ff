"""What an engine file says of itself: ``manifest.json``.

    format, version    "psp_rt.engine", 1; another version is refused
    task               free text: inversion, sketch, segmentation, ...
    input              kind, height, width, resize (and labels, for label maps); null without an encoder
    output             height and width of the pictures
    num_styles         L, the rows of a code [L, D]
    style_dim          D
    noise              "const", "random" or "none"
    precision          what a build for a GPU uses; with "fp16" there are graphs for it beside the FP32 ones
    fp32_layers        of each FP16 graph, the nodes kept in FP32 because FP16 would overflow; may be absent
    weights            how the file stores the weights
    provenance         where the model comes from, text to text
    parity             how close the export is to its checkpoint, text to number
    stripped           the graphs have been taken out, only plans are left; may be absent
    members            SHA-256 and size of every other member

Fields that this version does not know are ignored, so that later files may add some; what changes
the meaning of a file raises its version.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import FormatError

FORMAT = "psp_rt.engine"
VERSION = 1
INPUT_KINDS = ("rgb", "gray", "labels")
RESIZES = ("bilinear", "nearest")
NOISES = ("const", "random", "none")
PRECISIONS = ("fp32", "fp16")
MAX_SIDE = 16384  # pixels; a manifest must not be able to ask for terabytes
MAX_STYLES = 64
MAX_STYLE_DIM = 65536
MAX_NUMBER = 1e300


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

    def to_json(self) -> str:
        """Return the manifest as JSON text."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=2) + "\n"

    @staticmethod
    def from_json(data: bytes | str) -> Manifest:
        """Read a manifest.

        Raises:
            FormatError: The text is no JSON, or a field is missing, of another type or out of range.
        """
        fields = _Fields(_parse(data), "")
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
        )


def _parse(data: bytes | str) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"manifest.json is not valid JSON ({error}); export the engine again") from None
    if not isinstance(fields, dict):
        raise FormatError(f"manifest.json holds a {type(fields).__name__}; expected an object")
    return fields


def _check_version(fields: _Fields) -> None:
    found = fields.text("format")
    if found != FORMAT:
        raise FormatError(f"manifest.json: format is {found!r}; expected {FORMAT!r}")
    version = fields.whole("version", 0, 10**9)
    if version != VERSION:
        raise FormatError(
            f"manifest.json: version is {version}, this psp_rt reads version {VERSION}; "
            + ("upgrade with: pip install -U psp_rt" if version > VERSION else "export the engine again")
        )


def _input_spec(fields: _Fields) -> InputSpec:
    kind = fields.choice("kind", INPUT_KINDS)
    if kind != "labels" and fields.optional("labels") is not None:
        raise FormatError(f"manifest.json: input.labels is given for kind {kind!r}; only label maps have it")
    return InputSpec(
        kind=kind,
        height=fields.whole("height", 1, MAX_SIDE),
        width=fields.whole("width", 1, MAX_SIDE),
        labels=fields.whole("labels", 1, 256) if kind == "labels" else None,
        resize=fields.choice("resize", RESIZES),
    )


def _image_size(fields: _Fields) -> ImageSize:
    return ImageSize(height=fields.whole("height", 1, MAX_SIDE), width=fields.whole("width", 1, MAX_SIDE))


def _members(fields: _Fields) -> dict[str, Member]:
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


def _fp32_layers(fields: _Fields) -> dict[str, tuple[str, ...]]:
    if fields.optional("fp32_layers") is None:  # before FP16 there was no such field
        return {}
    group = fields.group("fp32_layers")
    return {name: group.list_of_texts(name) for name in group.names}


class _Fields:
    """One JSON object, whose fields are taken with their type checked."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self._values = values
        self.where = where

    @property
    def names(self) -> list[str]:
        return list(self._values)

    def optional(self, name: str) -> Any:
        return self._values.get(name)

    def value(self, name: str) -> Any:
        if name not in self._values:
            raise FormatError(f"manifest.json: {self.where}{name} is missing; export the engine again")
        return self._values[name]

    def group(self, name: str) -> _Fields:
        value = self.value(name)
        if not isinstance(value, dict) or not all(key.isprintable() for key in value):
            raise self._wrong(name, value, "an object with printable names")
        return _Fields(value, f"{self.where}{name}.")

    def text(self, name: str) -> str:
        value = self.value(name)
        if not isinstance(value, str) or not value.isprintable():  # control characters would reach terminals
            raise self._wrong(name, value, "a text of printable characters")
        return value

    def list_of_texts(self, name: str) -> tuple[str, ...]:
        values = self.value(name)
        if not isinstance(values, list) or not all(
            isinstance(text, str) and text.isprintable() for text in values
        ):
            raise self._wrong(name, values, "a list of texts of printable characters")
        return tuple(values)

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        value = self.value(name)
        if value not in choices:
            raise self._wrong(name, value, "one of " + ", ".join(choices))
        return str(value)

    def whole(self, name: str, least: int, most: int) -> int:
        value = self.value(name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self._wrong(name, value, f"a whole number from {least} to {most}")
        return value

    def number(self, name: str) -> float:
        value = self.value(name)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < MAX_NUMBER:
            raise self._wrong(name, value, "a finite number")
        return float(value)

    def texts(self) -> dict[str, str]:
        return {name: self.text(name) for name in self.names}

    def numbers(self) -> dict[str, float]:
        return {name: self.number(name) for name in self.names}

    def _wrong(self, name: str, value: object, expected: str) -> FormatError:
        try:
            shown = json.dumps(value)
        except RecursionError:
            shown = "nested too deep"
        shown = shown if len(shown) <= 60 else shown[:60] + "..."
        return FormatError(f"manifest.json: {self.where}{name} is {shown}; expected {expected}")
