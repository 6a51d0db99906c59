"""How the trouble of a worker is told to the user."""

from __future__ import annotations

import dataclasses

from ....errors import LiveAvatarError
from ....planner import Plan, try_next

_DEVICE_FULL = "OutOfMemoryError"
"""What PyTorch calls it, as `trouble.fault_of` tells it; a full host has other names."""


class WorkerError(LiveAvatarError):
    """A worker was lost, fell silent or failed; the next run starts it anew.

    Attributes:
        stage: which, from 0; -1 where no single one is to blame.
        replaceable: whether another worker in its place may well do better: it was lost, hung or out of reach, and
            neither its computation nor its memory was the cause.
    """

    def __init__(self, what: str, nearest: str = "", stage: int = -1, replaceable: bool = False):
        super().__init__(what, nearest)
        self.stage, self.replaceable = stage, replaceable


@dataclasses.dataclass
class Limits:
    """Of patience; may be changed at any time.

    Attributes:
        deadline: seconds after which a task that does not end, or a worker that does not answer, counts as hung.
        restarts: how many workers may be replaced while a video is made.
    """

    deadline: float
    restarts: int


class Restarts:
    """How often workers may still be replaced in a video.

    Args:
        most: times at all. The same stage is not replaced again before another block was delivered, because what
            happened to it twice in a row happens a third time.
    """

    def __init__(self, most: int):
        self._left = most
        self._latest: dict[int, int] = {}
        """By stage: how many blocks had been delivered when it was replaced."""

    def allow(self, error: WorkerError, delivered: int) -> bool:
        """Whether the worker may be replaced; if so, it counts as done.

        Args:
            error: what happened to it.
            delivered: blocks that the caller has by now.
        """
        again = self._latest.get(error.stage) == delivered
        if not error.replaceable or again or not self._left:
            return False
        self._left -= 1
        self._latest[error.stage] = delivered
        return True


def stage_name(plan: Plan, stage: int) -> str:
    """A stage in words: "Stage 2 of 3 (steps 0-3, layers 4-7, on cuda:1)"."""
    s = plan.stages[stage]
    return (
        f"Stage {stage + 1} of {len(plan.stages)} ({_span('step', s.steps)}, {_span('layer', s.layers)}, on {s.device})"
    )


def worker_error(
    plan: Plan, stage: int, happened: str, nearest: str, lines: list[str], replaceable: bool
) -> WorkerError:
    """One error that names the stage, what happened and what it said last.

    Args:
        happened: a sentence's end, after the name of the stage.
        nearest: what to do.
        lines: the last of its log.
        replaceable: see `WorkerError`.
    """
    if _DEVICE_FULL in happened:
        nearest = f"{try_next(plan)} {nearest}"
    return WorkerError(f"{stage_name(plan, stage)} {happened}.", f"{nearest}{last_words(lines)}", stage, replaceable)


def last_words(lines: list[str]) -> str:
    """The end of a log as the end of an error's text."""
    return "\nIts last log lines:\n" + "\n".join(f"  {line}" for line in lines) if lines else ""


def _span(name: str, numbers: range) -> str:
    return f"{name} {numbers[0]}" if len(numbers) == 1 else f"{name}s {numbers[0]}-{numbers[-1]}"
