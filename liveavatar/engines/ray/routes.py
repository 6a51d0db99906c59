"""Which tasks a worker runs and which workers it meets, as pure functions of the cut; all derive the same answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from ...config import CLIP_BLOCKS
from ...machines import Machine, same_device
from ...pipeline import Cut, Denoise, Prefill, Task, followers, paced_order


def own_tasks(cut: Cut, blocks: int, stage: int, first: int = 0, clip_blocks: int = CLIP_BLOCKS) -> Iterator[Task]:
    """The tasks of one stage from block `first` on, in the order in which it runs them."""
    order = paced_order(cut, blocks, first=first, clip_blocks=clip_blocks)
    return (start.task for start in order if start.stage == stage)


def links(cut: Cut) -> tuple[tuple[int, int], ...]:
    """The pairs of different stages (from, to) between which flows travel, sorted; equal for any length of clips."""
    parts = range(len(cut.layers))
    tasks: list[Task] = [Denoise(0, step, part) for step in range(cut.last_step + 1) for part in parts]
    tasks += [Prefill(0, group, part) for group in range(len(cut.steps)) for part in parts]
    long = CLIP_BLOCKS + 1
    pairs = {(cut.stage_of(t), cut.stage_of(f)) for t in tasks for f in followers(cut, long, t)}
    return tuple(sorted((a, b) for a, b in pairs if a != b))


@dataclasses.dataclass(frozen=True)
class Seat:
    """Where a worker works.

    Attributes:
        machine: its machine.
        device: of that machine.
        nccl: whether its PyTorch has NCCL and sees a card.
    """

    machine: Machine
    device: str
    nccl: bool


@dataclasses.dataclass(frozen=True)
class Route:
    """A link between two stages.

    Attributes:
        sender, receiver: numbers of stages.
        nccl: whether tensors travel from card to card; else through CPU memory.
    """

    sender: int
    receiver: int
    nccl: bool


def routes(cut: Cut, seats: Sequence[Seat]) -> tuple[Route, ...]:
    """All links of a plan, decided once for both ends."""
    return tuple(Route(a, b, by_nccl(seats[a], seats[b])) for a, b in links(cut))


def by_nccl(one: Seat, other: Seat) -> bool:
    """Whether NCCL carries what travels between two workers: both have it, and two cards that differ, as it wants."""
    cards = all(seat.nccl and seat.device.startswith("cuda") for seat in (one, other))
    return cards and not same_device((one.machine, one.device), (other.machine, other.device))
