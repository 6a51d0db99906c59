"""Which tasks a worker runs and which workers it meets, as pure functions of the cut; all derive the same answer."""

from __future__ import annotations

from collections.abc import Iterator

from ...config import CLIP_BLOCKS
from ...pipeline import Cut, Denoise, Prefill, Task, followers, paced_order


def own_tasks(cut: Cut, blocks: int, stage: int, first: int = 0) -> Iterator[Task]:
    """The tasks of one stage from block `first` on, in the order in which it runs them."""
    return (start.task for start in paced_order(cut, blocks, first=first) if start.stage == stage)


def links(cut: Cut) -> tuple[tuple[int, int], ...]:
    """The pairs of different stages (from, to) between which flows travel, sorted."""
    parts = range(len(cut.layers))
    tasks: list[Task] = [Denoise(0, step, part) for step in range(cut.last_step + 1) for part in parts]
    tasks += [Prefill(0, group, part) for group in range(len(cut.steps)) for part in parts]
    long = CLIP_BLOCKS + 1
    pairs = {(cut.stage_of(t), cut.stage_of(f)) for t in tasks for f in followers(cut, long, t)}
    return tuple(sorted((a, b) for a, b in pairs if a != b))
