"""The folder of a run: it belongs to one configuration, so that a resumed run is the same run."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psp_rt.errors import InputError, OutputError

CONFIG, LATEST = "config.json", "latest.pt"
MAY_CHANGE = {"images", "report_images", "checkpoint_images"}  # none changes what a step does


def open_folder(folder: Path, config: Mapping[str, Any]) -> None:
    """Make a folder for a run, or find that it is this run's.

    Raises:
        InputError: The folder holds something else than this run.
        OutputError: It cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CONFIG).exists():
            _check_same(folder, config)
        elif any(folder.iterdir()):
            raise InputError(
                f"{folder} holds files but no {CONFIG}, so they are not those of such a run; "
                "choose another --output"
            )
        unfinished = folder / f"{CONFIG}.partial"
        unfinished.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        os.replace(unfinished, folder / CONFIG)  # a full disk must not cost a run its configuration
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error}; choose another --output") from error


def _check_same(folder: Path, config: Mapping[str, Any]) -> None:
    try:
        before = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{folder / CONFIG} is damaged ({error}); choose another --output") from error
    old, new = _flat(before), _flat(json.loads(json.dumps(config)))
    different = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    different = [name for name in different if name.split(".")[-1] not in MAY_CHANGE]
    if different:
        told = "; ".join(f"{name} was {old.get(name)!r}, is {new.get(name)!r}" for name in different[:5])
        raise InputError(
            f"{folder} is the folder of another run: {told}. "
            "Give the same settings and files to resume, or another --output to start anew"
        )


def _flat(values: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {name: values}
    inside = {f"{name}.{key}".lstrip("."): value for key, value in values.items()}
    return {key: value for name, part in inside.items() for key, value in _flat(part, name).items()}
