"""How a stage keeps what it holds: the rungs of the memory ladder, as data.

The planner chooses, the weights' reader and the stage obey. Nothing else asks which rung it is.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

WeightFormat = Literal["plain", "fp8", "fp8-tensor", "int8"]
"""The large matrices: in the working dtype; e4m3 with one scale per output row (or one per tensor, as the published
implementation has it); int8 with one scale per output row, worked in the working dtype."""
KeyFormat = Literal["plain", "fp8"]
"""Keys and values of blocks: in the working dtype, or e4m3 with one scale per token and head."""
Home = Literal["device", "host"]
"""Where keys and values of the steps that are not being worked on lie; the host's memory is pinned."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """How one stage keeps its weights and memories.

    Attributes:
        weights: format of the large matrices.
        keys: format of the keys and values of blocks; those of the sink and of the prompt stay plain.
        keys_home: where they lie between two uses.
        prompt_weights: whether the matrices that make keys and values of the prompt stay on the device, or leave it
            once the prompt is read.
        streamed: how many of the stage's layers live in host memory and pass through two slots on the device.
    """

    weights: WeightFormat = "plain"
    keys: KeyFormat = "plain"
    keys_home: Home = "device"
    prompt_weights: Literal["stay", "leave"] = "stay"
    streamed: int = 0


PLAIN = Storage()
"""Everything on the device in the working dtype."""


def streamed_layers(layers: range, count: int) -> tuple[int, ...]:
    """Which `count` of some layers are streamed: spread evenly, so that resident ones hide the copies between them.

    Raises:
        ValueError: more than there are.
    """
    if not 0 <= count <= len(layers):
        raise ValueError(f"{count} of {len(layers)} layers cannot be streamed.")
    return tuple(layers[(2 * i + 1) * len(layers) // (2 * count)] for i in range(count))
