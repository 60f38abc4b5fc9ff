"""The options in a checkpoint: plain values, or their text, by the name they have in the file.

Options that went through a command line, an environment variable or a safetensors header are text:
"False", "0" and "None" mean what they say. Anything that cannot be understood is refused by its name.
"""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from export.errors import CheckpointError
from trainer.checkpoint_tensors import plain

FLAGS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
NOTHING = ("", "none", "null")


class Options:
    """Named plain values. An option that is absent, None or the text of None is not stated."""

    def __init__(self, found: object) -> None:
        """Take the options as a file stores them: a dictionary, a namespace, JSON text or None."""
        stored: Any = found
        if isinstance(stored, str):
            try:
                stored = json.loads(stored)
            except (ValueError, RecursionError) as error:
                raise CheckpointError(f"the options are a text that is not JSON: {found!r:.40}") from error
        if isinstance(stored, argparse.Namespace):
            stored = vars(stored)
        if not isinstance(stored, Mapping | None):
            raise CheckpointError(f"the options are a {type(stored).__name__}; expected a dictionary")
        values = {str(name): plain(value) for name, value in (stored or {}).items()}
        self._values: dict[str, str | int | float] = {
            name: value.strip() if isinstance(value, str) else value
            for name, value in values.items()
            if isinstance(value, str | int | float)
            and not (isinstance(value, str) and value.strip().lower() in NOTHING)
        }

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str) -> str:
        """Return an option as text, empty if it is not stated."""
        return str(self._values.get(name, ""))

    def flag(self, name: str) -> bool | None:
        """Return an option that is yes or no; None if it is not stated."""
        if name not in self._values:
            return None
        value = self._values[name]
        known = FLAGS.get(str(value).lower())
        if known is None:
            raise CheckpointError(f"the option {name} is {value!r:.60}; expected True or False")
        return known

    def number(self, name: str) -> int | None:
        """Return an option that is a whole number; None if it is not stated."""
        if name not in self._values:
            return None
        value = self._values[name]
        try:
            number = float({"true": 1, "false": 0}.get(str(value).lower(), value))
            if number == int(number):
                return int(number)
        except (ValueError, OverflowError):  # not a number, or an infinite one
            pass
        raise CheckpointError(f"the option {name} is {value!r:.60}; expected a whole number")
