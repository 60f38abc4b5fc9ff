"""What a request asks for: read from a raw picture with a query, a form, or JSON with base64."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from starlette.datastructures import UploadFile
from starlette.requests import Request

from ..errors import InputError
from ..style import check_seed, layer_ranges
from ..truncation import Truncation, strengths
from .limits import Limits

if TYPE_CHECKING:
    from ..preparation import FacesOption

PictureFormat = Literal["png", "jpeg", "webp"]
FORMATS: dict[PictureFormat, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
MOST_SEEDS = 64
MOST_SIDE = 4096  # pixels of a result that is asked for in another size
MOST_STYLES = 64
FIELDS = (
    *("engine", "seeds", "layers", "alpha", "truncation", "truncation_layers", "faces", "paste"),
    *("clean", "from_photo", "format", "size"),
)
PICTURES = ("image", "style_from")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a request, checked.

    Args:
        engine: Its name; None is the first one.
        seeds: Of random styles; each gives a result.
        layers: The paper's layers that styles replace.
        alpha: How far they replace them.
        truncation: As for `Translator.run`.
        faces: Which faces; None is what the engine expects.
        paste: Results are put back into the photo.
        clean: Drawings are cleaned; None is what the engine expects.
        from_photo: Photos are drawn first.
        format: Of the results.
        size: Of the longer side of results in pixels; None is the model's.
    """

    engine: str | None = None
    seeds: tuple[int, ...] = ()
    layers: str | None = None
    alpha: float = 1.0
    truncation: Truncation | None = None
    faces: FacesOption | None = None
    paste: bool = False
    clean: bool | None = None
    from_photo: bool = False
    format: PictureFormat = "png"
    size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Body:
    """A request: its options, its pictures, and what else JSON had."""

    options: Options
    pictures: Mapping[str, bytes] = field(default_factory=dict)  # "image", "style_from"
    values: Mapping[str, Any] = field(default_factory=dict)
    raw: bytes = b""  # of a body that is no form and no JSON


async def read_body(request: Request, limits: Limits, *, raw: str = "image") -> Body:
    """Read a request; the query may set options in any case.

    Args:
        request: The request.
        limits: Of the server.
        raw: What a body that is neither a form nor JSON is.

    Raises:
        InputError: A field is unknown, or not what it should be.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    given: dict[str, Any] = dict(request.query_params)
    pictures: dict[str, bytes] = {}
    values: dict[str, Any] = {}
    body = b""
    if kind == "multipart/form-data":
        async with request.form(max_files=4, max_fields=40, max_part_size=limits.body_bytes) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    if name not in PICTURES:
                        raise InputError(
                            f"the form has the file {name[:40]!r}; expected {' or '.join(PICTURES)}"
                        )
                    pictures[name] = await value.read()
                else:
                    given[name] = value
    elif kind == "application/json":
        found = _object(await request.body())
        for name in PICTURES:
            if name in found:
                pictures[name] = _from_base64(found.pop(name), name)
        values = {name: found.pop(name) for name in ("codes", "shape") if name in found}
        given |= found
    else:
        body = await request.body()
        if body and raw:
            pictures[raw] = body
    return Body(options=parse_options(given), pictures=pictures, values=values, raw=body)


def parse_options(given: Mapping[str, Any]) -> Options:
    """Check options, whether they come as text or as JSON's types."""
    unknown = [name for name in given if name not in FIELDS]
    if unknown:
        raise InputError(f"there is no option {str(unknown[0])[:40]!r}; expected one of {', '.join(FIELDS)}")
    layers = given.get("layers")
    if layers is not None:
        if not isinstance(layers, str):
            raise InputError(f'layers is {_shown(layers)}; expected text, such as "8-" or "4-7,9"')
        layer_ranges(layers)
    return Options(
        engine=None if given.get("engine") is None else str(given["engine"]),
        seeds=_seeds(given.get("seeds")),
        layers=layers,
        alpha=_number(given, "alpha", 0, 1, default=1.0),
        truncation=_truncation(given),
        faces=cast("FacesOption | None", _choice(given, "faces", ("largest", "all", "off"), default=None)),
        paste=bool(_flag(given, "paste", default=False)),
        clean=_flag(given, "clean", default=None),
        from_photo=bool(_flag(given, "from_photo", default=False)),
        format=cast(PictureFormat, _choice(given, "format", tuple(FORMATS), default="png")),
        size=None if given.get("size") is None else int(_number(given, "size", 1, MOST_SIDE)),
    )


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"the body is {_shown(found)}; expected a JSON object")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


def _from_base64(value: Any, name: str) -> bytes:
    if not isinstance(value, str):
        raise InputError(f"{name} is {_shown(value)}; expected a picture file in base64")
    try:
        return base64.b64decode(value.partition("base64,")[2] or value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{name} is no base64: {error}") from None


def _seeds(value: Any) -> tuple[int, ...]:
    if value is None or value == "":
        return ()
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    if len(parts) > MOST_SEEDS:
        raise InputError(f"seeds has {len(parts)} numbers, expected at most {MOST_SEEDS}")
    seeds = []
    for part in parts:
        in_text = isinstance(part, str) and part.strip().isdecimal() and len(part) < 20
        seed = int(part) if in_text else part
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise InputError(f"seeds has {_shown(seed)}; expected whole numbers, such as 1,2,3")
        seeds.append(check_seed(seed))
    return tuple(seeds)


def _truncation(given: Mapping[str, Any]) -> Truncation | None:
    layers = given.get("truncation_layers")
    if given.get("truncation") is None:
        if layers is not None:
            raise InputError("truncation_layers needs truncation, such as 0.7")
        return None
    psi = _number(given, "truncation", 0, 1)
    if layers is not None and not isinstance(layers, str):
        raise InputError(f'truncation_layers is {_shown(layers)}; expected text, such as "1-8"')
    found: Truncation = psi if layers is None else (psi, layers)
    strengths(found, MOST_STYLES)
    return found


def _number(
    given: Mapping[str, Any], name: str, least: float, most: float, *, default: float = math.nan
) -> float:
    value = given.get(name)
    if value is None:
        return default
    try:
        number = math.nan if isinstance(value, (bool, list, dict)) else float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not least <= number <= most:
        raise InputError(f"{name} is {_shown(value)}; expected a number from {least} to {most}")
    return number


def _choice(
    given: Mapping[str, Any], name: str, choices: tuple[str, ...], *, default: str | None
) -> str | None:
    value = given.get(name)
    if value is None:
        return default
    if value not in choices:
        raise InputError(f"{name} is {_shown(value)}; expected {', '.join(choices)}")
    return str(value)


def _flag(given: Mapping[str, Any], name: str, *, default: bool | None) -> bool | None:
    value = given.get(name)
    if value is None:
        return default
    words = {
        "true": True,
        "1": True,
        "yes": True,
        "on": True,
        "false": False,
        "0": False,
        "no": False,
        "off": False,
    }
    found = value if isinstance(value, bool) else words.get(value.lower()) if isinstance(value, str) else None
    if found is None:
        raise InputError(f"{name} is {_shown(value)}; expected true or false")
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
