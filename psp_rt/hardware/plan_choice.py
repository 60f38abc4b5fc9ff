"""Which TensorRT plan of an engine runs here, or why none does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..engine.plans import choose as choose_target
from ..engine.plans import records
from ..engine.reader import EngineFile
from ..errors import PlanError
from .tensorrt import TensorRtState


@dataclass(frozen=True, kw_only=True)
class PlanChoice:
    """A plan that fits, or the problem.

    Args:
        target: The folder of the plans; empty where none can be used.
        precision: What they compute in.
        problem: Why none can be used, and what to type.
        present: Whether the engine holds plans at all: else nobody expects one to be used.
    """

    target: str = ""
    precision: str = ""
    problem: str = ""
    present: bool = True


def find_plan(engine: EngineFile | None, state: Callable[[], TensorRtState], precision: str) -> PlanChoice:
    """Return the plan for this machine.

    Args:
        engine: The engine; None where it is not known yet.
        state: Asks for TensorRT, which takes an import; not called without a plan to run.
        precision: "auto", or what the plan must compute in.

    Raises:
        FormatError: A record is damaged.
    """
    known = records(engine) if engine is not None else {}
    if engine is None or not known:
        where = "the engine" if engine is None else str(engine.path)
        problem = f"{where} has no TensorRT plan; build one for this machine with: psp-rt build {where}"
        return PlanChoice(problem=problem, present=False)
    found = state()
    if found.machine is None:
        return PlanChoice(problem=f"the plans of {engine.path} cannot be run: {found.problem}")
    try:
        target = choose_target(engine, found.machine)
    except PlanError as error:
        return PlanChoice(problem=str(error))
    computes = known[target].precision
    if precision not in ("auto", computes):
        return PlanChoice(
            problem=f"the plan of {engine.path} for this machine computes in {computes}, and "
            f"precision={precision!r} was asked for; use precision={computes!r} or 'auto'"
        )
    return PlanChoice(target=target, precision=computes)
