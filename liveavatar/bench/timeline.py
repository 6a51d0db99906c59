"""When the tasks of a run and their phases began and ended, without making a device wait."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from ..task_graph import Task

T = TypeVar("T")

PHASES = {"embed_block": "embed", "embed_sink": "embed", "run_layers": "layers", "velocity": "head", "text_kv": "text"}
"""Methods of the network, and the phase of a task that each is."""


@dataclasses.dataclass(frozen=True)
class TaskTime:
    """One task.

    Attributes:
        task: which.
        seconds: from its first to its last operation on the device.
        phases: seconds of its parts, see `PHASES`.
    """

    task: Task
    seconds: float
    phases: dict[str, float]


@dataclasses.dataclass(frozen=True)
class _Mark:
    """A moment: an event of a CUDA stream, or the wall clock elsewhere."""

    event: Any
    clock: float

    def seconds_until(self, other: _Mark) -> float:
        return other.clock - self.clock if self.event is None else self.event.elapsed_time(other.event) / 1e3


Span = tuple[_Mark, _Mark]


class Timeline:
    """Marks in what one device is given to do; read once it is done.

    Args:
        device: on CUDA, moments are events; elsewhere the wall clock, which is right where work is done when asked for.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.begin = self.mark()
        self._tasks: list[tuple[Task, Span]] = []
        self._phases: list[list[tuple[str, Span]]] = []
        self._ends: list[_Mark] = []

    def mark(self) -> _Mark:
        """Now, in the device's own order of things."""
        if self.device.type != "cuda":
            return _Mark(None, time.perf_counter())
        event = torch.cuda.Event(enable_timing=True)
        return _Mark(torch.cuda.current_stream(self.device).record_event(event), 0.0)

    def restart(self) -> None:
        """The run begins here."""
        self.begin = self.mark()

    def end_block(self) -> None:
        """A block is finished here."""
        self._ends.append(self.mark())

    @contextlib.contextmanager
    def task(self, task: Task) -> Iterator[None]:
        """What is inside is this task."""
        self._phases.append([])
        before = self.mark()
        yield
        self._tasks.append((task, (before, self.mark())))

    def phase(self, name: str, work: Callable[..., T]) -> Callable[..., T]:
        """The same work, its time noted as a phase of the task it belongs to."""

        def timed(*arguments: Any) -> T:
            before = self.mark()
            result = work(*arguments)
            if self._phases:
                self._phases[-1].append((name, (before, self.mark())))
            return result

        return timed

    def block_ends(self) -> tuple[float, ...]:
        """Seconds from the beginning to the end of each block; waits for the device."""
        self._wait()
        return tuple(self.begin.seconds_until(end) for end in self._ends)

    def task_times(self) -> tuple[TaskTime, ...]:
        """All tasks in their order; waits for the device."""
        self._wait()
        return tuple(
            TaskTime(task, before.seconds_until(after), _summed(phases))
            for (task, (before, after)), phases in zip(self._tasks, self._phases, strict=True)
        )

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class TimedNet:
    """Stands in for a network: its phases are noted, all else is its own."""

    def __init__(self, net: Any, timeline: Timeline):
        self._net, self._timeline = net, timeline

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._net, name)
        return self._timeline.phase(PHASES[name], found) if name in PHASES else found


def _summed(phases: list[tuple[str, Span]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for name, (before, after) in phases:
        total[name] = total.get(name, 0.0) + before.seconds_until(after)
    return total
