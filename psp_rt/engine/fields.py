"""Read the fields of a JSON object with their types and ranges checked."""

from __future__ import annotations

import json
from typing import Any

from ..errors import FormatError

MAX_NUMBER = 1e300


class Fields:
    """A JSON object; every error names the file, the field, its value and what was expected.

    Args:
        values: The parsed object.
        source: The file, for messages: "manifest.json".
        remedy: What to do about a missing field: "export the engine again".
        where: The path to this object: "input.".
    """

    def __init__(self, values: dict[str, Any], *, source: str, remedy: str, where: str = "") -> None:
        self._values, self.source, self._remedy, self.where = values, source, remedy, where

    @classmethod
    def parse(cls, data: bytes | str, *, source: str, remedy: str) -> Fields:
        """Parse a JSON object.

        Raises:
            FormatError: The text is not JSON, or not an object.
        """
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{source} is not valid JSON ({error}); {remedy}") from None
        if not isinstance(values, dict):
            raise FormatError(f"{source} holds a {type(values).__name__}; expected an object")
        return cls(values, source=source, remedy=remedy)

    @property
    def names(self) -> list[str]:
        """Return the names of all fields."""
        return list(self._values)

    def optional(self, name: str) -> Any:
        """Return a field as it is, or None."""
        return self._values.get(name)

    def value(self, name: str) -> Any:
        """Return a field as it is."""
        if name not in self._values:
            raise FormatError(f"{self.source}: {self.where}{name} is missing; {self._remedy}")
        return self._values[name]

    def group(self, name: str) -> Fields:
        """Return an object."""
        value = self.value(name)
        if not isinstance(value, dict) or not all(key.isprintable() for key in value):
            raise self._wrong(name, value, "an object with printable names")
        return Fields(value, source=self.source, remedy=self._remedy, where=f"{self.where}{name}.")

    def text(self, name: str, *, longest: int | None = None) -> str:
        """Return a text without control characters, which would reach terminals."""
        value = self.value(name)
        if not isinstance(value, str) or not value.isprintable():
            raise self._wrong(name, value, "a text of printable characters")
        if longest is not None and len(value) > longest:
            raise self._wrong(name, value, f"a text of at most {longest} characters")
        return value

    def list_of_texts(self, name: str) -> tuple[str, ...]:
        """Return a list of texts."""
        values = self.value(name)
        if not isinstance(values, list) or not all(
            isinstance(text, str) and text.isprintable() for text in values
        ):
            raise self._wrong(name, values, "a list of texts of printable characters")
        return tuple(values)

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """Return one of some texts."""
        value = self.value(name)
        if value not in choices:
            raise self._wrong(name, value, "one of " + ", ".join(choices))
        return str(value)

    def flag(self, name: str) -> bool:
        """Return true or false."""
        value = self.value(name)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def whole(self, name: str, least: int, most: int) -> int:
        """Return a whole number in a range."""
        value = self.value(name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self._wrong(name, value, f"a whole number from {least} to {most}")
        return value

    def number(self, name: str) -> float:
        """Return a finite number."""
        value = self.value(name)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < MAX_NUMBER:
            raise self._wrong(name, value, "a finite number")
        return float(value)

    def texts(self, *, longest: int | None = None) -> dict[str, str]:
        """Return this object, all of whose fields are texts."""
        return {name: self.text(name, longest=longest) for name in self.names}

    def numbers(self) -> dict[str, float]:
        """Return this object, all of whose fields are numbers."""
        return {name: self.number(name) for name in self.names}

    def _wrong(self, name: str, value: object, expected: str) -> FormatError:
        try:
            shown = json.dumps(value)
        except RecursionError:
            shown = "nested too deep"
        shown = shown if len(shown) <= 60 else shown[:60] + "..."
        return FormatError(
            f"{self.source}: {self.where}{name} is {shown}; expected {expected}; {self._remedy}"
        )
