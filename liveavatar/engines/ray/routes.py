"""Which task hands its flow to which, as pure functions of the cut; every worker derives the same answer."""

from __future__ import annotations

from collections.abc import Iterator

from ...config import CLIP_BLOCKS
from ...pipeline import Cut, Denoise, Prefill, Task, paced_order


def followers(cut: Cut, blocks: int, task: Task) -> tuple[Task, ...]:
    """The tasks that take up what `task` leaves.

    The last latent of block 0 starts the second version of the sink in every group of steps.
    """
    within = task.part + 1 < len(cut.layers)
    if isinstance(task, Prefill):
        return (Prefill(task.version, task.group, task.part + 1),) if within else ()
    if within:
        return (Denoise(task.block, task.step, task.part + 1),)
    if task.step < cut.last_step:
        return (Denoise(task.block, task.step + 1, 0),)
    if task.block == 0 and blocks > CLIP_BLOCKS:
        return tuple(Prefill(1, group, 0) for group in range(len(cut.steps)))
    return ()


def ends_block(cut: Cut, task: Task) -> bool:
    """Whether a task leaves a finished latent."""
    return isinstance(task, Denoise) and (task.step, task.part) == (cut.last_step, len(cut.layers) - 1)


def own_tasks(cut: Cut, blocks: int, stage: int) -> Iterator[Task]:
    """The tasks of one stage, in the order in which it runs them."""
    return (start.task for start in paced_order(cut, blocks) if start.stage == stage)


def links(cut: Cut) -> tuple[tuple[int, int], ...]:
    """The pairs of different stages (from, to) between which flows travel, sorted."""
    parts = range(len(cut.layers))
    tasks: list[Task] = [Denoise(0, step, part) for step in range(cut.last_step + 1) for part in parts]
    tasks += [Prefill(0, group, part) for group in range(len(cut.steps)) for part in parts]
    long = CLIP_BLOCKS + 1
    pairs = {(cut.stage_of(t), cut.stage_of(f)) for t in tasks for f in followers(cut, long, t)}
    return tuple(sorted((a, b) for a, b in pairs if a != b))
