"""Which tasks a worker runs and which workers it meets, as pure functions of the cut; all derive the same answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from ..config import CLIP_BLOCKS
from ..device_names import Machine, same_device
from ..task_graph import Denoise, Partition, Prefill, Task, followers, paced_order


def own_tasks(
    partition: Partition,
    blocks: int,
    stage: int,
    first: int = 0,
    clip_blocks: int = CLIP_BLOCKS,
    portraits: Sequence[int] = (),
) -> Iterator[Task]:
    """The tasks of one stage from block `first` on, in the order in which it runs them; see `paced_order`."""
    order = paced_order(partition, blocks, first=first, clip_blocks=clip_blocks, portraits=portraits)
    return (start.task for start in order if start.stage == stage)


def stage_links(partition: Partition) -> tuple[tuple[int, int], ...]:
    """The pairs of different stages (from, to) between which inputs travel, sorted; equal for any length of clips."""
    parts = range(len(partition.layer_shards))
    tasks: list[Task] = [Denoise(0, step, part) for step in range(partition.last_step + 1) for part in parts]
    tasks += [Prefill(0, group, part) for group in range(len(partition.step_groups)) for part in parts]
    long = CLIP_BLOCKS + 1
    pairs = {(partition.stage_of(t), partition.stage_of(f)) for t in tasks for f in followers(partition, long, t)}
    return tuple(sorted((a, b) for a, b in pairs if a != b))


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where a worker works.

    Attributes:
        machine: its machine.
        device: of that machine.
        nccl: whether its PyTorch has NCCL and sees a device.
    """

    machine: Machine
    device: str
    nccl: bool


@dataclasses.dataclass(frozen=True)
class LinkSpec:
    """A link between two stages.

    Attributes:
        sender, receiver: numbers of stages.
        nccl: whether tensors travel from card to card; else through CPU memory.
    """

    sender: int
    receiver: int
    nccl: bool


def link_specs(partition: Partition, endpoints: Sequence[Endpoint]) -> tuple[LinkSpec, ...]:
    """All links of a plan, decided once for both ends."""
    return tuple(LinkSpec(a, b, uses_nccl(endpoints[a], endpoints[b])) for a, b in stage_links(partition))


def uses_nccl(one: Endpoint, other: Endpoint) -> bool:
    """Whether NCCL carries what travels between two workers: both have it, and two devices that differ, as it wants."""
    devices = all(slot.nccl and slot.device.startswith("cuda") for slot in (one, other))
    return devices and not same_device((one.machine, one.device), (other.machine, other.device))
