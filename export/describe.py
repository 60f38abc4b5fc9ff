"""Change what an engine says about itself, without its checkpoint: ``python -m export describe``.

For engines from before these fields, and to measure which codes are usual once pictures are at hand. The
graphs and plans stay as they are, to the byte.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.engine import check_layers
from export.strangeness import measure_pictures, measure_styles
from psp_rt import EngineFile, InputError, Manifest
from psp_rt.engine import CODES, MANIFEST, STYLES, write_engine
from psp_rt.files import check_writable


@dataclass(frozen=True, kw_only=True)
class Description:
    """What to change.

    Args:
        alignment: "ffhq" or "none"; None keeps it.
        default_layers: The paper's layers that random styles replace by default; None keeps them.
        pictures: Files or folders of usual pictures, to measure the limit of strange codes; empty keeps it.
        from_photos: The pictures are aligned photos, from which the model's inputs are made.
    """

    alignment: str | None = None
    default_layers: str | None = None
    pictures: Sequence[Path] = ()
    from_photos: bool = False


def describe(
    path: Path,
    changes: Description,
    *,
    output: Path | None = None,
    report: Callable[[str], None] = lambda step: None,
) -> Manifest:
    """Rewrite an engine with another description.

    Args:
        path: The engine.
        changes: What to change.
        output: Write another engine file; None replaces this one.
        report: Called at the start of each step.

    Raises:
        InputError: The engine has no such layers or no encoder, or the pictures are too few.
        FormatError: The engine is damaged.
        OutputError: The file cannot be written; the old one is as it was.
    """
    check_writable(output or path)
    with EngineFile.open(path) as engine:
        manifest = engine.manifest
        check_layers(changes.default_layers, manifest.num_styles)
        if manifest.input is None and (changes.alignment or changes.pictures):
            raise InputError(f"{path} has no encoder, so it expects no pictures; leave out their options")
        provenance, fields = dict(manifest.provenance), dict[str, Any]()
        if changes.alignment is not None:
            fields["alignment"], provenance["alignment"] = changes.alignment, "--alignment"
        if changes.default_layers is not None:
            fields["default_layers"] = changes.default_layers

        members: dict[str, Any] = {name: engine.view(name) for name in engine.names if name != MANIFEST}
        if STYLES not in members:
            report("measuring the styles")
            members[STYLES] = measure_styles(path).to_bytes()
        if changes.pictures:
            report("measuring which codes are usual")
            usual = measure_pictures(path, changes.pictures, from_photos=changes.from_photos)
            members[CODES] = usual.codes.to_bytes()
            fields["strange_above"] = usual.limit
            provenance |= usual.provenance()
        described = replace(manifest, provenance=provenance, **fields)
        return write_engine(output or path, described, members)
