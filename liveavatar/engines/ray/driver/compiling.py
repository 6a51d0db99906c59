"""Workers compile the layers they hold, side by side and form by form."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from .... import compiler
from ....machines import DeviceName
from ....planner import Plan
from ....session import OnNotice
from ...compiled import compiling, forms, was_compiled
from .faults import WorkerError
from .member import Member

COMPILE_SECONDS = 1800.0
"""How long one form may take."""
Gather = Callable[[Plan, dict[int, Any], float, str], dict[int, Any]]
"""See `Crew.gather`."""


def unable(plan: Plan, members: list[Member]) -> WorkerError | None:
    """What to say where a worker's machine lacks what compiling takes; known before it loads anything."""
    for number, (stage, member) in enumerate(zip(plan.stages, members, strict=True)):
        kind = DeviceName.parse(stage.device).device.partition(":")[0]
        lacks = member.greeting.lacks.get(kind, "") if member.greeting else ""
        if plan.compiled and lacks and compiler.COMPILER == "inductor":
            what = f"Stage {number + 1} of {len(members)} ({stage.device}) cannot compile its layers: {lacks} missing."
            return WorkerError(what, compiler.WITHOUT, number)
    return None


def compile_layers(plan: Plan, members: list[Member], gather: Gather, on_notice: OnNotice) -> None:
    """Have all workers compile that have not yet, each form on all of them at once.

    Args:
        on_notice: told between the forms, and what it took; what it raises ends it, and the next time goes on there.

    Raises:
        WorkerError: one could not.
    """
    if all_compiled(plan, members):
        return
    wanted = _wanted(plan)
    begun = time.monotonic()
    for form in range(forms(plan.clip_blocks)):
        on_notice(compiling())
        asked = {number: member.ask("compile", *wanted, form) for number, member in enumerate(members)}
        gather(plan, asked, COMPILE_SECONDS, "compile its layers")
    for member in members:
        member.compiled.add(wanted)
    on_notice(was_compiled(time.monotonic() - begun))


def all_compiled(plan: Plan, members: list[Member]) -> bool:
    """Whether nothing has to be compiled before a run, as far as is known."""
    return not plan.compiled or all(_wanted(plan) in member.compiled for member in members)


def _wanted(plan: Plan) -> tuple[tuple[int, int], str, int]:
    """What layers are compiled for: the size of the picture, the compiler, and the blocks of a clip."""
    return plan.size, compiler.COMPILER, plan.clip_blocks
