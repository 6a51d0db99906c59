"""Monitoring one video across its worker processes: blocks are allowed, latents come in, lost workers are replaced."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from .. import compiler
from ..attention_choice import AttentionUse
from ..errors import LiveAvatarError
from ..events import GENERATING, HEARTBEAT_SECONDS, Callback, Event, notice_event
from ..noise_schedule import NoiseSchedule
from ..planner import Plan
from ..session import VideoTask
from ..stage import Portrait
from ..stage_state import SavedTensors, pieces_of, read_piece
from ..task_graph import task_count
from . import ray_compat
from .block_source import BlockSource
from .kept_state import KeptState
from .pool import PROBE_AFTER_SECONDS, WorkerPool
from .queue import PauseFlag
from .snapshots import NUM_KEPT, latest_common
from .wire import ModelSpec, RunBegun, RunSpec, WorkerEvents, WorkerFault
from .worker_handle import Restarts, WorkerError, WorkerHandle

_EVENTS_SECONDS = 1.0
"""A worker without events answers after this time."""
_POLL_SECONDS = 0.5
_GATE_SECONDS = 0.02
"""Between two questions whether a block may begin, of an open number."""
_SECOND_HAND_SECONDS = 3.0
"""How long the cause is waited for when all that is known is that a link broke."""


class ReceivedBlocks:
    """The finished blocks of a video that wait for the caller. A block that is made again comes in only once.

    Args:
        first: the first one of all.

    Attributes:
        count: the number of the next block to come in.
    """

    def __init__(self, first: int = 0) -> None:
        self.count = first
        self._waiting: deque[torch.Tensor] = deque()

    def add(self, block: int, latent: torch.Tensor) -> None:
        """Blocks come in order, from any that was expected on."""
        if block == self.count:
            self._waiting.append(latent)
            self.count += 1

    def __len__(self) -> int:
        return len(self._waiting)

    def pop(self) -> torch.Tensor:
        """The next block."""
        return self._waiting.popleft()


@dataclasses.dataclass(frozen=True)
class RunStart:
    """Where a run begins.

    Attributes:
        number: of the run, never used again.
        first: the block; earlier ones are finished.
        folder: of the video's snapshots.
        state: what the earlier ones have left, where no snapshot has it.
    """

    number: int
    first: int
    folder: str
    state: SavedTensors | None = None


class RunMonitor:
    """A run of a plan by a worker pool, until its end or its first error.

    Args:
        pool, workers: whose worker processes.
        plan, job: what they run.
        source: of its blocks.
        beginning: number, first block and folder of the run.
        received: gets the blocks.
        pause: holds further blocks back.
    """

    def __init__(
        self,
        pool: WorkerPool,
        workers: list[WorkerHandle],
        plan: Plan,
        job: VideoTask,
        source: BlockSource,
        beginning: RunStart,
        received: ReceivedBlocks,
        pause: PauseFlag,
    ):
        self._pool, self._workers, self._plan, self._job, self._beginning = pool, workers, plan, job, beginning
        self._source, self._received, self._pause = source, received, pause
        self._allowed = self._next = beginning.first
        self._seconds = [0.0] * len(workers)
        self._events: dict[Any, int] = {}
        """Stages whose events were requested, by the reference of their answer."""
        self._requested = [0.0] * len(workers)
        self._embedding: dict[Any, tuple[int, torch.Tensor | None]] = {}
        """Blocks whose audio and prompt are being embedded, with their pose, by the reference of the answer."""
        self._total, self._ended = source.total, set[int]()
        """The number of the last block and one, as the workers know it; stages that have run all their tasks."""
        self._snapshots: dict[int, tuple[int, ...]] = {}
        """By stage: boundaries of its complete snapshots."""
        self._lost_link: tuple[float, int, str] | None = None
        """Time, stage and words of a broken link whose cause is not known yet."""
        clip_blocks, portraits, first = job.resolved.clip_blocks, source.portraits, beginning.first
        counted = source.first, clip_blocks, portraits
        self._all_tasks = task_count(plan.partition, job.blocks, *counted) if job.blocks else 0
        self._tasks = task_count(plan.partition, first, *counted) if first > source.first else 0
        self._called = time.monotonic()
        self.begun: tuple[RunBegun, ...] = self._begin()
        """What the workers of the stages answered, in their order."""

    @property
    def workers(self) -> list[WorkerHandle]:
        """Of the stages."""
        return self._workers

    @property
    def number(self) -> int:
        """Of the run."""
        return self._beginning.number

    @property
    def seconds(self) -> tuple[float, ...]:
        """Busy seconds of each stage."""
        return tuple(self._seconds)

    def next_latent(self, block: int, callback: Callback) -> torch.Tensor | None:
        """Block number `block`, in order; with the last one of a known number all tasks are done and reported. None:
        there is no such block, and all tasks of the others are done.

        While the pause holds back what it needs, `callback` is called with that; while the gate does, with the latest
        progress.

        Raises:
            WorkerError: a worker was lost, hung or failed.
        """
        while True:
            if not self._pause.on:
                self._allow(block, callback)
            self._limit_workers()
            if self._is_there(block):
                return self._received.pop()
            if block == self._source.total and (self._source.is_open or self.boundary is not None):
                return None
            if self._pause.on and self._allowed < self._limit(block):
                self._pause.notify(callback)
            self._wait(block, callback)

    @property
    def boundary(self) -> int | None:
        """The number of the last block and one, once all stages have run all their tasks and rest; else None."""
        return self._total if len(self._ended) == len(self._workers) else None

    def restore(self, callback: Callback) -> None:
        """Send all stages the state that the run begins with, where it does, piece by piece, each to all at once."""
        saved, beginning = self._beginning.state, self._beginning
        if saved is None:
            return
        pieces = (pieces_of(stage.steps, stage.layers) for stage in self._plan.stages)
        for sent in itertools.zip_longest(*pieces):
            calls = {
                stage: self._workers[stage].call("restore", beginning.number, piece, read_piece(saved, piece))
                for stage, piece in enumerate(sent)
                if piece is not None
            }
            callback(Event(GENERATING, self._tasks, self._all_tasks))
            self._pool.gather(self._plan, calls, self._pool.limits.deadline, "take up the state")

    def _is_there(self, block: int) -> bool:
        """Whether a block has come in, and if it is the last one, all tasks with it."""
        last = not self._source.is_open and self._source.total == block + 1
        return bool(self._received) and not (last and self.boundary is None)

    def _limit_workers(self) -> None:
        """Tell the workers of a video that was stopped where it ends now."""
        total = self._source.total
        if not self._source.is_open and total is not None and total != self._total:
            self._total = total
            for worker in self._workers:
                worker.call("limit", self._beginning.number, total)

    def _limit(self, block: int) -> int:
        """How many blocks may have begun while the caller waits for `block`.

        As many blocks as there are stages are at work at once, and one is begun as another ends; one more may wait for
        the caller. With one less, grids of stages fall short of their pace where the number of blocks is open.
        """
        limit = min(block, self._next) + self._plan.partition.stages + 2
        return limit if self._source.total is None else min(limit, self._source.total)

    def _wait(self, block: int, callback: Callback) -> None:
        """Wait a moment for answers, and for the gate where it is open."""
        if self._source.total is not None or self._pause.on or self._allowed >= self._limit(block):
            self._poll(callback, _POLL_SECONDS)
        elif self._allowed > self._next:
            self._poll(callback, _GATE_SECONDS)
        else:  # nothing is under way: workers are asked now and then whether they live
            self._wait_for_gate(HEARTBEAT_SECONDS)
            self._poll(callback, 0.0)
        if self._source.is_open and time.monotonic() - self._called > HEARTBEAT_SECONDS:
            self._call(callback, Event(GENERATING, self._tasks, self._all_tasks))

    def _wait_for_gate(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._source.has(self._allowed) and time.monotonic() < until and self._source.total is None:
            time.sleep(_GATE_SECONDS)

    def _call(self, callback: Callback, event: Event) -> None:
        self._called = time.monotonic()
        callback(event)

    def _begin(self) -> tuple[RunBegun, ...]:
        resolved, material, distance = self._job.resolved, self._job.conditioning, self._job.distance
        schedule, first = NoiseSchedule.flow_matching(resolved.steps), self._beginning.first
        prompts, prompt_start = self._source.prompts_before(first)
        conditions = self._workers[0].call("embed", [_own(p) for p in prompts], [*schedule.timesteps, 0.0])
        # Handed on only when it is there, so that a worker is never kept waiting by another.
        self._pool.gather(self._plan, {0: conditions}, self._pool.limits.deadline, "embed the prompt")
        portraits = tuple(b for b in self._source.portraits if b < first or not self._source.is_open)
        calls = {}
        for stage, worker in enumerate(self._workers):
            spec = RunSpec(
                run=self._beginning.number,
                stage=stage,
                partition=self._plan.partition,
                blocks=None if self._source.is_open else self._total,
                portraits=portraits,
                prompt_start=prompt_start,
                clip_blocks=resolved.clip_blocks,
                first=first,
                from_state=self._beginning.state is not None,
                keep_state=self._job.keep_state,
                snapshot_blocks=self._plan.snapshot_blocks,
                folder=self._beginning.folder,
                seed=resolved.seed,
                schedule=schedule,
                size=resolved.latent_size,
                distance=distance,
                reference=_own(material.reference),
                motion=_own(material.motion),
                compiler=compiler.COMPILER if self._plan.compiled else "",
                attention=self._plan.attention,
                speaker_mask=None if material.speaker_mask is None else _own(material.speaker_mask),
            )
            calls[stage] = worker.call("begin", spec, conditions)
        # Workers accept blocks and requests for events only once the run has begun.
        answers = self._pool.gather(self._plan, calls, self._pool.limits.deadline, "begin")
        for stage in range(len(self._workers)):
            self._request_events(stage)
        return tuple(answers[stage] for stage in calls)

    def _request_events(self, stage: int) -> None:
        self._requested[stage] = time.monotonic()
        self._events[self._workers[stage].call("events", _EVENTS_SECONDS)] = stage

    def _allow(self, block: int, callback: Callback) -> None:
        """Let further blocks be worked on while the caller waits for `block`."""
        at_work = lambda _: self._call(callback, Event(GENERATING, self._tasks, self._all_tasks))  # noqa: E731
        while self._allowed < self._limit(block) and self._source.has(self._allowed):
            prompt = self._source.prompt(self._allowed)
            context = None if prompt is None else _own(prompt)
            ref = self._workers[0].call("embed_block", self._source.features(self._allowed), context)
            self._embedding[ref] = self._allowed, self._source.pose(self._allowed, at_work)
            self._allowed += 1

    def _poll(self, callback: Callback, seconds: float) -> None:
        """Wait so long for answers and act on them."""
        owing = [*self._events, *self._embedding]
        if owing:
            done = ray_compat.wait(owing, seconds)
        else:
            done = []
            time.sleep(min(seconds, 0.1))
        for ref in done:
            if ref in self._embedding:
                self._distribute(*self._embedding.pop(ref), ref)
            else:
                self._handle_events(self._events.pop(ref), ref, callback)
        self._check_silence()

    def _distribute(self, block: int, pose: torch.Tensor | None, ref: Any) -> None:
        """Send what a block is made of to all stages, which allows the block."""
        kind, value = self._pool.result(self._plan, 0, ref)
        if kind != "ok":
            raise self._pool.worker_lost(self._plan, 0, f"failed: {value[0]}", value[1])
        portrait = self._source.portrait(block)
        if portrait is not None:
            portrait = Portrait(_own(portrait.reference), _own(portrait.motion))
        for worker in self._workers:
            worker.call("allow", self._beginning.number, block, ref, portrait, pose)

    def _handle_events(self, stage: int, ref: Any, callback: Callback) -> None:
        kind, value = self._pool.result(self._plan, stage, ref)
        if kind != "ok":
            raise self._pool.worker_lost(self._plan, stage, f"failed: {value[0]}", value[1])
        events: WorkerEvents = value
        if events.state == "running":
            self._request_events(stage)
        elif events.state == "done":
            self._ended.add(stage)
        self._seconds[stage] = events.seconds
        for latent in events.latents:
            self._received.add(self._next, latent)
            self._next += 1
        self._forget_old(stage, events.snapshots)
        if events.fault is not None:
            self._handle_fault(stage, events.fault)
        elif events.state in ("stopped", "idle"):
            self._handle_lost_link(stage, "stopped without being told to")
        if events.busy > self._pool.limits.deadline:
            happened = f"has hung for {events.busy:.0f} s in one task"
            raise self._pool.worker_lost(self._plan, stage, happened, replaceable=True)
        for task in events.tasks:
            self._tasks += 1
            self._call(callback, Event(GENERATING, self._tasks, self._all_tasks, task=task, stage=stage))

    def _forget_old(self, stage: int, snapshots: tuple[int, ...]) -> None:
        """Let the blocks go with which no run will begin: two boundaries that all stages have are enough."""
        if self._snapshots.get(stage) != snapshots:
            self._snapshots[stage] = snapshots
            if len(self._snapshots) == len(self._workers):
                common = set.intersection(*map(set, self._snapshots.values()))
                usable = sorted(b for b in common if b <= self._received.count)
                self._source.forget(usable[-NUM_KEPT] if len(usable) >= NUM_KEPT else 0)

    def _handle_fault(self, stage: int, fault: WorkerFault) -> None:
        if fault.kind == "link":
            self._handle_lost_link(stage, fault.what)
            return
        nearest = fault.nearest or "Run it again."
        raise self._pool.worker_lost(self._plan, stage, f"failed: {fault.what.rstrip('.')}", nearest)

    def _handle_lost_link(self, stage: int, what: str) -> None:
        self._lost_link = self._lost_link or (time.monotonic(), stage, what)

    def _check_silence(self) -> None:
        now = time.monotonic()
        if self._events:
            ref, stage = min(self._events.items(), key=lambda asked: self._requested[asked[1]])
            silent = now - self._requested[stage] - _EVENTS_SECONDS
            if silent > PROBE_AFTER_SECONDS:
                late = (
                    s for s in self._events.values() if now - self._requested[s] - _EVENTS_SECONDS > PROBE_AFTER_SECONDS
                )
                self._pool.check_machines(self._plan, sorted(late))
            # Where the callback has taken long, an answer waits that was given in time.
            if silent > self._pool.limits.deadline and not ray_compat.wait([ref], 0.0):
                happened = f"has given no sign of life for {silent:.0f} s"
                raise self._pool.worker_lost(self._plan, stage, happened, replaceable=True)
        if self._lost_link and now - self._lost_link[0] > _SECOND_HAND_SECONDS:
            raise self._pool.worker_lost(self._plan, self._lost_link[1], self._lost_link[2], replaceable=True)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU, in memory of its own, so that only what is seen of it is sent."""
    return tensor.detach().cpu().clone()


def superseded() -> LiveAvatarError:
    """For a video that was left half made while another one began."""
    return LiveAvatarError("Another video was begun on these workers before this one was finished.", "Run it again.")


_numbers = itertools.count(1)
"""Of videos and runs, in this process."""
_KEPT_INTERVALS = 4
"""Intervals between snapshots of which blocks are kept, because some snapshots may fail, or come late."""
_LEAST_KEPT = 64
_log = logging.getLogger(__name__)


class VideoRun:
    """One video on a worker pool, in one run or several.

    When a worker is lost, all stages go back to the latest boundary of which each has a snapshot, or to the beginning,
    and compute from there; blocks that were received before are not received again.

    Args:
        pool: whose worker processes.
        plan, model, job: what they run; the plan is that of `WorkerPool.start` once it has begun.
        pause: holds further blocks back.
    """

    def __init__(self, pool: WorkerPool, plan: Plan, model: ModelSpec, job: VideoTask, pause: PauseFlag):
        self._pool, self.plan, self._model, self._job, self._pause = pool, plan, model, job, pause
        self._received = ReceivedBlocks(job.resolved.first_block)
        self._restarts = Restarts(pool.limits.restarts)
        self._source = BlockSource(job, max(_LEAST_KEPT, _KEPT_INTERVALS * plan.snapshot_blocks))
        self._run: RunMonitor | None = None
        self._folder = ""
        self._lost: list[WorkerError] = []
        """Errors of replaced workers that the caller has not been notified of."""
        self._seconds = (0.0,) * len(plan.stages)
        """Of the runs before this one."""
        self.attention: tuple[AttentionUse, ...] = ()
        """What self-attention is done with on each device, once a run has begun."""

    @property
    def seconds(self) -> tuple[float, ...]:
        """Busy seconds of each stage."""
        return _sums(self._seconds, self._run.seconds) if self._run else self._seconds

    def kept_state(self) -> KeptState | None:
        """What the run has left in its workers; None where some blocks are not finished, none was made, or a worker is
        lost."""
        run = self._run
        if run is None or not run.boundary:
            return None
        try:
            return KeptState(self._pool, run.workers, self.plan, run.number, run.boundary)
        except WorkerError as error:
            _log.warning("%s", error)
            return None

    def close(self) -> None:
        """Let go of what was kept of its blocks."""
        self._source.close()

    def next_latent(self, block: int, callback: Callback) -> torch.Tensor | None:
        """Block number `block`, in order; see `RunMonitor.next_latent`.

        Raises:
            WorkerError: a worker failed, or was lost and may not be replaced; or what would have to be computed again
                is forgotten.
        """
        while True:
            try:
                run = self._run or self._begin(callback)
                return run.next_latent(block, callback)
            except WorkerError as error:
                self._seconds, self._run = self.seconds, None
                # One of no stage came from the gate, where other workers may have been at work.
                if error.stage < 0 or not self._restarts.allow(error, delivered=block):
                    raise
                _log.warning("A worker is replaced: %s", error)
                self._lost.append(error)

    def _begin(self, callback: Callback) -> RunMonitor:
        self.plan, workers = self._pool.start(self.plan, self._model, callback)
        number = next(_numbers)
        if not self._folder or Path(self._folder).parent != self._pool.resources.folder:  # with Ray, it is a new one
            self._folder = self._pool.open_folder(number)
        first = max(self._latest_boundary(workers) if self._lost else 0, self._source.first)
        if first < self._source.oldest:
            raise self._lost[-1]
        beginning = RunStart(number, first, self._folder, self._job.start if first == self._source.first else None)
        self._run = RunMonitor(
            self._pool, workers, self.plan, self._job, self._source, beginning, self._received, self._pause
        )
        self._run.restore(callback)
        by_device = {stage.device: begun for stage, begun in zip(self.plan.stages, self._run.begun, strict=True)}
        self.attention = tuple(dataclasses.replace(b.attention, device=name) for name, b in by_device.items())
        for notice in dict.fromkeys(begun.notice for begun in by_device.values() if begun.notice):
            callback(notice_event(notice))
        lost, self._lost = self._lost, []
        for error in lost:
            callback(notice_event(f"{error.what.rstrip('.')}; it was replaced, going on from block {first}."))
        return self._run

    def _latest_boundary(self, workers: list[WorkerHandle]) -> int:
        """Where all can go on: what every stage has kept, and whose blocks have all come in."""
        if not self.plan.snapshot_blocks:
            return 0
        asked = {}
        for stage, worker in enumerate(workers):
            steps = self.plan.stages[stage].steps
            asked[stage] = worker.call("complete_snapshots", self._folder, stage, (steps.start, steps.stop))
        kept = self._pool.gather(self.plan, asked, self._pool.limits.deadline, "look for its snapshots")
        return latest_common(kept.values(), self._received.count)


def _sums(left: Iterable[float], right: Iterable[float]) -> tuple[float, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))
