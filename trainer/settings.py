"""Settings as users write them, ``NAME=VALUE``, and as a dataclass wants them."""

import difflib
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from psp_rt.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NEEDED = ("task", "kind", "source", "mirror")  # values without which a recipe says nothing


def parse_change(change: str) -> dict[str, Any]:
    """Return what one ``NAME=VALUE`` of a command line sets; VALUE is as in TOML."""
    key, equals, value = change.partition("=")
    try:
        if equals:
            return tomllib.loads(f"{key}={value}")
    except tomllib.TOMLDecodeError:
        try:
            return tomllib.loads(f'{key}="{value}"')  # a word needs no quotes on a command line
        except tomllib.TOMLDecodeError:
            pass
    raise InputError(f"--set {change} cannot be read; expected NAME=VALUE, as in --set batch=16")


def typed(kind: type, values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return values as the fields of a dataclass have them; `name` is for messages."""
    hints = get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        known = _meant(unknown[0], hints) or f"known are {', '.join(hints)}"
        raise InputError(f"{name} has the unknown value {unknown[0]}; {known}")
    missing = [f.name for f in fields(kind) if f.name in NEEDED]
    missing = [each for each in missing if each not in values]
    if missing:
        raise InputError(f"{name} does not say its {missing[0]}")
    return {key: _value(value, hints[key], f"{name}: {key}") for key, value in values.items()}


def _meant(unknown: str, hints: Mapping[str, Any]) -> str:
    """Return what a name was perhaps meant to be; empty if that cannot be guessed."""
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
    if hint is float and type(value) in (int, float):
        return float(value)
    allowed = get_args(hint) or (hint,)
    if type(value) not in allowed:
        wanted = " or ".join(getattr(each, "__name__", str(each)) for each in allowed)
        raise InputError(f"{name} is {value!r}, expected {wanted}")
    return value
