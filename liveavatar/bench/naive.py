"""The same network run the straightforward way, to say what the machinery around it gains.

What is naive about it:

- A step remembers the keys of its blocks as they were made, not rotated, in a list of tensors per layer. Every task
  rotates the whole window and the reference again in every layer, as complex numbers in float32, and puts the blocks
  side by side with a new list each time.
- Keys and values of the prompt are computed again for every task.
- Nothing is kept in another format or fetched ahead.

What is not: matrices, norms and the attention kernel are the very same, so the ratio to ours shows what is gained by
keeping and moving keys and values, and nothing else. Latents differ in rounding only: a window in the order of time and
a KV cache add the same products in another order.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import torch

from ..config import WINDOW_BLOCKS
from ..model.attention import KeyValue
from ..model.kv_cache import SinkKV
from ..model.layer import EAGER, KVCache, LayerOps
from ..model.rope import Rope
from ..model.transformer import CausalS2VTransformer
from ..stage import Stage, StageConditioning, StageInput
from ..task_graph import Denoise, Task, sink_version

_Blocks = collections.deque[tuple[torch.Tensor, torch.Tensor]]
"""Keys, not rotated, and values of the last blocks, oldest first."""


@dataclasses.dataclass(frozen=True)
class NaiveKVCache:
    """Memory of a noise pass in one layer (see `liveavatar.model.layer.Memory`).

    Attributes:
        blocks: of this layer and step; the block itself is added.
        window: rotations of all tokens of the window, oldest first.
        sink, reference: as in `liveavatar.model.kv_cache.BlockCache`.
    """

    blocks: _Blocks
    window: Rope
    sink: SinkKV
    reference: Rope

    def update(self, k: torch.Tensor, v: torch.Tensor, rope: Rope) -> tuple[KeyValue, KeyValue]:
        """Remember, rotate everything, put it side by side."""
        self.blocks.append((k, v))
        keys = _turned(torch.cat([old for old, _ in self.blocks]), self.window)
        reference = _turned(self.sink.reference_k, self.reference)
        values = torch.cat([old for _, old in self.blocks])
        return (keys, values), (torch.cat((reference, self.sink.motion_k)), self.sink.v)

    def release(self) -> None:
        """Nothing to do."""


class NaiveStage(Stage):
    """A stage that remembers naively; it keeps everything on the device in the working dtype."""

    def __init__(
        self,
        net: CausalS2VTransformer,
        steps: range,
        conditions: StageConditioning,
        device: torch.device,
        dtype: torch.dtype,
        work: LayerOps = EAGER,
    ):
        super().__init__(net, steps[:0], conditions, device, dtype, ops=work)  # it has no KV caches
        self._blocks: dict[int, list[_Blocks]] = {
            step: [collections.deque(maxlen=WINDOW_BLOCKS) for _ in net.slice.layers] for step in steps
        }

    def run(self, task: Task, stage_input: StageInput) -> StageInput:
        self.text_kv.clear()
        return super().run(task, stage_input)

    def _block_caches(self, task: Denoise) -> Sequence[KVCache]:
        version = sink_version(task.block)
        for old in [v for v in self.sinks if v < version and task.step == max(self._blocks)]:
            del self.sinks[old]
        time_id = self.conditioning.distance.reference_time_id(self.conditioning.seed, task.block, task.step)
        first, *later = (self.grid.block(b) for b in range(max(0, task.block - WINDOW_BLOCKS + 1), task.block + 1))
        window, reference = sum(later, first), self.grid.reference(time_id)
        return [
            NaiveKVCache(blocks, window, sink, reference)
            for blocks, sink in zip(self._blocks[task.step], self.sinks[version], strict=True)
        ]


def _turned(x: torch.Tensor, rope: Rope) -> torch.Tensor:
    """x [tokens, heads, head_dim], its pairs as complex numbers times others."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    turns = torch.complex(rope.cos, rope.sin).unsqueeze(1)
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)
