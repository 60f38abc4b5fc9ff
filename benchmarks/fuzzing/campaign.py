"""Campaigns: inputs go to a child process that is watched, and replaced when it dies."""

from __future__ import annotations

import collections
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from psp_rt import PspError

MAX_SECONDS, MAX_MIB = 5.0, 512.0  # for one input


class Target(Protocol):
    """What is attacked: it makes an input of a number, and uses it as the product does."""

    @property
    def name(self) -> str:
        """Of the campaign."""

    def make(self, number: int, folder: Path) -> Any:
        """Return an input, or the path of one in a folder; the same for the same number."""

    def use(self, made: Any) -> None:
        """Use an input; an error of ours refuses it, any other is a fault."""


def attack(numbers: Sequence[int], target: Target, report: Connection) -> None:
    """Make and use inputs in this process, reporting (number, outcome, seconds, MiB) for each."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)  # the runtimes print
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # a disk would take most of the time
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        for number in numbers:
            report.send((number, "started", 0.0, 0.0))
            try:
                made = target.make(number, Path(folder))
            except Exception:  # it cannot be written down: no input
                report.send((number, "not writable", 0.0, 0.0))
                continue
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            start = time.perf_counter()
            try:
                target.use(made)
                outcome = "ran"
            except PspError:
                outcome = "refused"
            except Exception as error:
                outcome = f"failed: {type(error).__name__}: {error}"[:200]
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            report.send((number, outcome, time.perf_counter() - start, grown))
    report.send(None)


def campaign(target: Target, first: int, seconds: float, only: int | None = None) -> dict[str, Any]:
    """Attack one target until time is up; a child that dies is replaced, and its input remembered."""
    outcomes: collections.Counter[str] = collections.Counter()
    bad: list[dict[str, Any]] = []
    worst_seconds = worst_mib = 0.0
    context, number, end = multiprocessing.get_context("fork"), first, time.monotonic() + seconds
    while time.monotonic() < end:
        numbers = [only] if only is not None else range(number, number + 5000)
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=attack, args=(numbers, target, sender))
        child.start()
        sender.close()
        current = number
        while True:
            silent = not receiver.poll(8 * MAX_SECONDS)  # of wall time: the machine may be busy
            try:
                message = None if silent else receiver.recv()
            except EOFError:
                message, silent = None, True
            if silent:  # the child died or hangs
                if child.is_alive():
                    child.kill()
                child.join()
                reason = f"died: exit status {child.exitcode}"
                outcomes["died"] += 1
                bad.append({"seed": current, "outcome": reason})
                number = current + 1
                break
            if message is None:
                number = current + 1
                break
            current, outcome, took, grown = message
            if outcome != "started":
                outcomes[outcome.partition(":")[0]] += 1
                worst_seconds, worst_mib = max(worst_seconds, took), max(worst_mib, grown)
                if outcome.startswith("failed") or took > MAX_SECONDS or grown > MAX_MIB:
                    bad.append({"seed": current, "outcome": outcome, "seconds": took, "mib": grown})
            elif time.monotonic() > end:
                child.kill()
                child.join()
                break
        receiver.close()
        if only is not None:
            break
    return {
        "inputs": sum(outcomes.values()),
        "outcomes": dict(outcomes),
        "worst_seconds": round(worst_seconds, 3),
        "worst_mib": round(worst_mib, 1),
        "bad": bad[:100],
    }
