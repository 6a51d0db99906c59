"""One video as its caller sees it: blocks are allowed, news is heard, latents come in, trouble is named."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from typing import Any

import torch

from .... import compiler
from ....errors import LiveAvatarError
from ....pipeline import task_count
from ....planner import Plan
from ....schedule import Schedule
from ....session import Job, OnNotice, OnTask, TaskReport
from ..cluster import calls
from ..plain import Fault, News, Orders, plain, plain_cut, task_of
from .crew import Crew
from .desk import SUSPICIOUS_SECONDS
from .member import Member
from .pause import Pause

_NEWS_SECONDS = 1.0
"""A worker with nothing to say answers after this time."""
_SECOND_HAND_SECONDS = 3.0
"""How long the cause is waited for when all that is known is that a link broke."""


class Received:
    """The finished blocks of a video that wait for the caller. A block that is made again comes in only once.

    Attributes:
        count: blocks that have come in so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._waiting: deque[torch.Tensor] = deque()

    def add(self, block: int, latent: torch.Tensor) -> None:
        """Blocks come in order, from any that was expected on."""
        if block == self.count:
            self._waiting.append(latent)
            self.count += 1

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self) -> torch.Tensor:
        """The next block."""
        return self._waiting.popleft()


@dataclasses.dataclass(frozen=True)
class Beginning:
    """Where a run begins.

    Attributes:
        number: of the run, never used again.
        first: the block; earlier ones are finished.
        folder: of the video's snapshots.
    """

    number: int
    first: int
    folder: str


class Run:
    """A run of a plan by a crew, until its end or the first trouble.

    Args:
        crew, members: who works.
        plan, job: at what.
        beginning: from where on.
        received: takes up the blocks.
        pause: holds further blocks back.
    """

    def __init__(
        self,
        crew: Crew,
        members: list[Member],
        plan: Plan,
        job: Job,
        beginning: Beginning,
        received: Received,
        pause: Pause,
    ):
        self._crew, self._members, self._plan, self._job, self._beginning = crew, members, plan, job, beginning
        self._blocks, self._received, self._pause = job.effective.blocks, received, pause
        self._allowed = self._next = beginning.first
        self._seconds = [0.0] * len(members)
        self._news: dict[Any, int] = {}
        """Stages that were asked for news."""
        self._asked = [0.0] * len(members)
        self._hearing: dict[Any, int] = {}
        """Blocks whose sound is being made into tokens."""
        self._puzzle: tuple[float, int, str] | None = None
        """Since when, at which stage, and in what words something is wrong whose cause is not known yet."""
        clip_blocks = job.effective.clip_blocks
        self._total = task_count(plan.cut, self._blocks, clip_blocks=clip_blocks)
        self._tasks = self._total - task_count(plan.cut, self._blocks, beginning.first, clip_blocks)
        self._begin()

    @property
    def seconds(self) -> tuple[float, ...]:
        """Busy seconds of each stage."""
        return tuple(self._seconds)

    def take(self, block: int, on_task: OnTask, on_notice: OnNotice) -> torch.Tensor:
        """Block number `block`, in order; with the last one all tasks are done and reported.

        While the pause holds back what it needs, `on_notice` hears of that.

        Raises:
            WorkerError: a worker was lost, hung or failed.
        """
        last = block == self._blocks - 1
        # As many blocks as there are stages are at work at once; two more may wait for the caller.
        wanted = min(self._blocks, block + self._plan.cut.stages + 2)
        while True:
            if not self._pause.on:
                self._allow(wanted)
            if self._received and not (last and self._tasks < self._total):
                break
            if self._allowed < wanted:
                self._pause.mention(on_notice)
            self._hear(on_task)
        return self._received.take()

    def _begin(self) -> None:
        effective, material, distance = self._job.effective, self._job.material, self._job.distance
        schedule = Schedule.of(effective.steps)
        conditions = self._members[0].ask("condition", _own(material.context), [*schedule.timesteps, 0.0])
        # Handed on only when it is there, so that a worker is never kept waiting by another.
        self._crew.gather(self._plan, {0: conditions}, self._crew.limits.deadline, "embed the prompt")
        begun = {}
        for stage, member in enumerate(self._members):
            orders = Orders(
                run=self._beginning.number,
                stage=stage,
                cut=plain_cut(self._plan.cut),
                blocks=self._blocks,
                clip_blocks=effective.clip_blocks,
                first=self._beginning.first,
                snapshot_blocks=self._plan.snapshot_blocks,
                folder=self._beginning.folder,
                seed=effective.seed,
                timesteps=schedule.timesteps,
                sigmas=schedule.sigmas,
                size=effective.latent_size,
                distance=(distance.kind, distance.value, distance.recorded),
                reference=_own(material.reference),
                motion=_own(material.motion),
                compiler=compiler.COMPILER if self._plan.compiled else "",
            )
            begun[stage] = member.ask("begin", plain(orders), conditions)
        # Blocks may be allowed and news be asked for only when the run is known.
        self._crew.gather(self._plan, begun, self._crew.limits.deadline, "begin")
        for stage in range(len(self._members)):
            self._ask(stage)

    def _ask(self, stage: int) -> None:
        self._asked[stage] = time.monotonic()
        self._news[self._members[stage].ask("news", _NEWS_SECONDS)] = stage

    def _allow(self, blocks: int) -> None:
        """Let the first so many blocks be worked on."""
        for block in range(self._allowed, blocks):
            features = self._job.material.audio.block(block)
            self._hearing[self._members[0].ask("hear", features)] = block
        self._allowed = max(self._allowed, blocks)

    def _hear(self, on_task: OnTask) -> None:
        """Wait a moment for answers and act on them."""
        owing = [*self._news, *self._hearing]
        if owing:
            done = calls.wait(owing, 0.5)
        else:
            done = []
            time.sleep(0.1)
        for ref in done:
            if ref in self._hearing:
                self._hand_out(self._hearing.pop(ref), ref)
            else:
                self._listen(self._news.pop(ref), ref, on_task)
        self._look_for_silence()

    def _hand_out(self, block: int, ref: Any) -> None:
        """Give a block's sound to all stages."""
        kind, value = self._crew.answer(self._plan, 0, ref)
        if kind != "ok":
            raise self._crew.lost(self._plan, 0, f"failed: {value[0]}", value[1])
        for member in self._members:
            member.ask("allow", self._beginning.number, block, ref)

    def _listen(self, stage: int, ref: Any, on_task: OnTask) -> None:
        kind, value = self._crew.answer(self._plan, stage, ref)
        if kind != "ok":
            raise self._crew.lost(self._plan, stage, f"failed: {value[0]}", value[1])
        news = News(*value)
        if news.state == "running":
            self._ask(stage)
        self._seconds[stage] = news.seconds
        for latent in news.latents:
            self._received.add(self._next, latent)
            self._next += 1
        if news.fault is not None:
            self._judge(stage, Fault(*news.fault))
        elif news.state in ("stopped", "idle"):
            self._wonder(stage, "stopped without being told to")
        if news.busy > self._crew.limits.deadline:
            happened = f"has hung for {news.busy:.0f} s in one task"
            raise self._crew.lost(self._plan, stage, happened, replaceable=True)
        for task in news.tasks:
            self._tasks += 1
            on_task(TaskReport(task_of(task), stage, self._tasks, self._total))

    def _judge(self, stage: int, fault: Fault) -> None:
        if fault.kind == "link":
            self._wonder(stage, fault.what)
            return
        nearest = fault.nearest or "Run it again."
        raise self._crew.lost(self._plan, stage, f"failed: {fault.what.rstrip('.')}", nearest)

    def _wonder(self, stage: int, what: str) -> None:
        self._puzzle = self._puzzle or (time.monotonic(), stage, what)

    def _look_for_silence(self) -> None:
        now = time.monotonic()
        if self._news:
            stage = min(self._news.values(), key=self._asked.__getitem__)
            silent = now - self._asked[stage] - _NEWS_SECONDS
            if silent > SUSPICIOUS_SECONDS:
                late = (s for s in self._news.values() if now - self._asked[s] - _NEWS_SECONDS > SUSPICIOUS_SECONDS)
                self._crew.look_for_machines(self._plan, sorted(late))
            if silent > self._crew.limits.deadline:
                happened = f"has given no sign of life for {silent:.0f} s"
                raise self._crew.lost(self._plan, stage, happened, replaceable=True)
        if self._puzzle and now - self._puzzle[0] > _SECOND_HAND_SECONDS:
            raise self._crew.lost(self._plan, self._puzzle[1], self._puzzle[2], replaceable=True)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU, in memory of its own, so that only what is seen of it is sent."""
    return tensor.detach().cpu().clone()


def taken_away() -> LiveAvatarError:
    """For a video that was left half made while another one began."""
    return LiveAvatarError("Another video was begun on these workers before this one was finished.", "Run it again.")
