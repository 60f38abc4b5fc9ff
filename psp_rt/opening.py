"""Open an engine: choose what it runs on, and go on to the next choice where one turns out not to work."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from .backends import open_backend
from .backends.backend import Backend
from .engine.manifest import Manifest
from .engine.reader import EngineFile
from .engine.statistics import CODES, STYLES, Floats, Statistics
from .errors import BackendError, DeviceError
from .hardware.choose import BackendName, Choice, Device, Hardware, Precision, candidates

log = logging.getLogger("psp_rt")


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An engine that is ready to run.

    Args:
        manifest: What the engine says about itself.
        backend: Runs its graphs.
        runs_on: Device and backend, and why these.
        usual: Mean and spread of usual codes, if the engine has them.
        average: The average style w [D], likewise.
    """

    manifest: Manifest
    backend: Backend
    runs_on: str
    usual: Statistics | None
    average: Floats | None


def open_engine(
    path: str | os.PathLike[str],
    *,
    device: Device,
    backend: BackendName,
    precision: Precision,
    threads: int | None,
) -> Opened:
    """Open an engine on a device; the arguments and errors are those of `Translator`."""
    with EngineFile.open(path, needs_graphs=False) as engine:
        manifest = engine.manifest
        styles = _statistics(engine, STYLES, manifest.style_dim)
        usual = _statistics(engine, CODES, manifest.num_styles, manifest.style_dim)
        choices = candidates(Hardware(), device=device, backend=backend, precision=precision, engine=engine)
        opened, choice = _open_first(engine, choices, threads)
    runs_on = f"{opened.device}, {opened.description} ({choice.reason})"
    log.info("%s runs on %s", path, runs_on)
    average = None if styles is None else styles.mean
    return Opened(manifest=manifest, backend=opened, runs_on=runs_on, usual=usual, average=average)


def _statistics(engine: EngineFile, member: str, *shape: int) -> Statistics | None:
    """Return statistics that an engine stores, if it does."""
    if member not in engine.names:
        return None
    return Statistics.from_bytes(engine.view(member), *shape, member=member)


def _open_first(engine: EngineFile, choices: Iterator[Choice], threads: int | None) -> tuple[Backend, Choice]:
    """Open the first choice that works; if none does, raise the error of the first one."""
    failures: list[DeviceError | BackendError] = []
    try:
        for choice in choices:
            reasons = "; ".join([*map(str, failures), choice.reason])
            if not choice.plan:
                engine.check_has_graphs(reasons)
            try:
                return open_backend(engine, choice, threads=threads), replace(choice, reason=reasons)
            except (DeviceError, BackendError) as error:
                log.warning(
                    "%s cannot run on %s with %s: %s", engine.path, choice.device, choice.backend, error
                )
                failures.append(error)
    except DeviceError:  # there is no other choice
        if not failures:
            raise
    raise failures[0]
