"""The tasks of one stage in one run: in which order they run, and what they wait for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from ..model.layer import AudioTokens
from ..stage import Changes, InitialInputs, Portrait, StageInput
from ..task_graph import Denoise, Prefill, Task, first_prefills, priority, renews_sink, sink_version
from .topology import own_tasks
from .wire import RunSpec


@dataclasses.dataclass(frozen=True)
class BlockInput:
    """What every stage is given of a block before it may begin.

    Attributes:
        audio: its audio tokens.
        prompt: embedded prompt [text_len, dim] that holds from it on; None: the one that holds already.
        portrait: that holds from it on; None: likewise.
        pose: its pose latents [16, 3, h, w]; None where no pose is followed.
    """

    audio: AudioTokens
    prompt: torch.Tensor | None = None
    portrait: Portrait | None = None
    pose: torch.Tensor | None = None


class TaskQueue:
    """The tasks of one stage in one run. Not thread-safe: the run's lock guards it.

    Where the number of blocks is known, tasks run in the paced order, which all stages derive alike. Else nobody knows
    when a block will be let in, and a stage runs what is ready, by the same priority: none waits for one task while
    another is ready, so no two wait for each other. The numbers are the same in any order.

    Args:
        spec: of the run.
        steps: of the stage.
        dtype: of the stage.
        prompts: embedded prompts [text_len, dim] after the first one that hold before `RunSpec.first`: the latest.
    """

    def __init__(self, spec: RunSpec, steps: range, dtype: torch.dtype, prompts: Sequence[torch.Tensor] = ()):
        self._spec, self._steps = spec, steps
        self.changes = Changes()
        """Of prompt and portrait, as far as blocks are allowed; what no later block needs is forgotten."""
        for prompt in prompts:
            self.changes.prompts.add(spec.prompt_start, prompt)
        for start in (b for b in spec.portraits if b < spec.first):
            self.changes.portraits.skip(start)
        portraits = self.changes.portraits
        self._initial = InitialInputs(spec.reference, spec.seed, spec.size, dtype, spec.clip_blocks, portraits)
        self._inputs: dict[Task, StageInput] = self._renewed_again()
        self._beginning: set[Task] = set()
        """Tasks of allowed blocks that take up nothing of other tasks."""
        self._given: dict[int, BlockInput] = {}
        self._early: dict[int, BlockInput] = {}
        """Of blocks that came before the one that is next."""
        self._allowed, self._total = spec.first, spec.blocks
        self._ended = dict.fromkeys(steps, spec.first - 1)
        """By step: the last block that has passed it."""
        self._sinks = {sink_version(spec.first - 1, spec.clip_blocks, spec.portraits)} if spec.first else set[int]()
        self._began, self._period = float("-inf"), 0.0
        """When the latest block began, and the seconds that the stage needs for one."""
        o = spec
        order = (
            None if o.blocks is None else own_tasks(o.partition, o.blocks, o.stage, o.first, o.clip_blocks, o.portraits)
        )
        self._order, self._next = order, None if order is None else next(order, None)

    @property
    def portraits(self) -> Sequence[int]:
        """Blocks at which another portrait begins, as far as they are known."""
        return self.changes.portraits.starts if self._order is None else self._spec.portraits

    @property
    def finished(self) -> bool:
        """Whether all tasks were taken; never where the number of blocks is open."""
        return self._order is not None and self._next is None

    @property
    def boundary(self) -> int | None:
        """The number of the last block and one; None where that is not known."""
        return self._total

    def audio(self, block: int) -> AudioTokens:
        """The audio tokens of a block that is allowed and has not passed the stage."""
        return self._given[block].audio

    def pose(self, block: int) -> torch.Tensor | None:
        """The pose latents of a block that is allowed and has not passed the stage."""
        return self._given[block].pose

    def limit(self, blocks: int) -> None:
        """Let the video end before this block, which has not been allowed."""
        self._total = blocks
        if self._order is not None and self._next is not None and not self._counts(self._next):
            self._next = self._following()

    def allow(self, block: int, block_input: BlockInput) -> None:
        """Let a block begin when all blocks before it may."""
        self._early[block] = block_input
        while (ready := self._early.pop(self._allowed, None)) is not None:
            self._allow_next(ready)

    def receive(self, task: Task, inputs: StageInput) -> None:
        """Add the input of a task."""
        self._inputs[task] = inputs

    def next_ready(self, now: float) -> Task | None:
        """The task to run now; None while there is none.

        Args:
            now: seconds of a clock.
        """
        if self._order is not None:
            return self._next if self._next is not None and self._ready(self._next) else None
        paced = self.seconds_to_begin(now) is not None
        ready = (t for t in (*self._inputs, *self._beginning) if self._ready(t) and not (paced and _begins_block(t)))
        return min(ready, key=priority, default=None)

    def seconds_to_begin(self, now: float) -> float | None:
        """How long no block may begin; None where one may. An open number of blocks begins no faster than the stage
        works, or all that may would be under way together, and end together."""
        left = self._began + self._period - now
        return left if self._order is None and left > 0 and any(map(_begins_block, self._beginning)) else None

    def take(self, task: Task, now: float) -> StageInput:
        """The input of the task that is run now; see `next_ready`."""
        if self._order is not None:
            self._next = self._following()
        if _begins_block(task):
            self._began = now
        self._beginning.discard(task)
        return self._inputs.pop(task, None) or self._initial.stage_input(task)

    def add_ended(self, task: Task, seconds: float) -> None:
        """Record that a task has run, and how long; what nothing will ask for again is forgotten."""
        self._period = seconds * len(self._steps)
        if isinstance(task, Prefill):
            self._sinks.add(task.version)
            return
        self._ended[task.step] = task.block
        if task.step == self._steps[-1]:
            self._forget(task.block)

    def clear(self) -> None:
        """Forget all inputs."""
        for kept in (self._inputs, self._given, self._early, self._beginning):
            kept.clear()

    def _following(self) -> Task | None:
        """The next task of the order that counts."""
        assert self._order is not None
        return next(filter(self._counts, self._order), None)

    def _counts(self, task: Task) -> bool:
        """Whether a task is one of a block before the end."""
        if self._total is None or (isinstance(task, Denoise) and task.block < self._total):
            return True
        if isinstance(task, Denoise) or self._total == self._spec.first:
            return False
        return task.version < 2 or self.portraits[task.version - 2] < self._total

    def _renewed_again(self) -> dict[Task, StageInput]:
        """The inputs of tasks that renew the sink, where the run begins when block 0 has left them already."""
        o = self._spec
        if not (0 < o.first <= o.clip_blocks and renews_sink(o.blocks, o.clip_blocks, o.portraits)):
            return {}
        tasks = (Prefill(1, group, 0) for group in range(len(o.partition.step_groups)))
        first_frame = StageInput(o.reference.to(self._initial.dtype))
        return {task: first_frame for task in tasks if o.partition.stage_of(task) == o.stage}

    def _allow_next(self, given: BlockInput) -> None:
        block, o = self._allowed, self._spec
        if given.prompt is not None:
            self.changes.prompts.add(block, given.prompt)
        if given.portrait is not None:
            self.changes.portraits.add(block, given.portrait)
        self._given[block] = given
        beginning: list[Task] = [*first_prefills(o.partition, block, o.clip_blocks, self.portraits)]
        beginning.append(Denoise(block, 0, 0))
        self._beginning.update(task for task in beginning if o.partition.stage_of(task) == o.stage)
        self._allowed += 1

    def _ready(self, task: Task) -> bool:
        if task not in self._inputs and task not in self._beginning:
            return False
        if isinstance(task, Prefill):
            return self._may_prefill(task.version)
        sink = sink_version(task.block, self._spec.clip_blocks, self.portraits)
        return task.block < self._allowed and self._ended[task.step] == task.block - 1 and sink in self._sinks

    def _may_prefill(self, version: int) -> bool:
        """Whether it is known what a version of the sink is made of; and not known that no block will need it."""
        if version > 1:
            begun = self.changes.portraits.starts
            return version - 2 < len(begun)
        return self._allowed > 0 and not (version and not renews_sink(None, self._spec.clip_blocks, self.portraits))

    def _forget(self, block: int) -> None:
        """Forget what blocks up to this one needed alone, which has passed the stage."""
        self._given.pop(block)
        sink = sink_version(block, self._spec.clip_blocks, self.portraits)
        self._sinks = {version for version in self._sinks if version >= sink}
        if block >= self._spec.clip_blocks:  # the sink that block 0 renews is there: it attends to block 0's prompt
            self.changes.prompts.forget(block + 1)
            self.changes.portraits.forget(block + 1)


def _begins_block(task: Task) -> bool:
    return isinstance(task, Denoise) and task.step == task.shard == 0
