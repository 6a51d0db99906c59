"""What any range of layers takes on one rung, quickly: the planner asks some ten thousand times."""

from __future__ import annotations

import dataclasses
import itertools

from ..config import WINDOW_BLOCKS, ModelConfig
from ..storage import SLOTS, Storage
from .bytes import Sizes
from .ladder import Rung
from .speed import layer_tflop


class Shelf:
    """The layers of a network on one rung; agrees with `stage_plan` to the byte.

    Args:
        config: of the network.
        frame_tokens: tokens per latent frame.
        size: bytes per number.
        rung: how things are kept.
        window_blocks: blocks a KV ring holds.
    """

    def __init__(
        self,
        config: ModelConfig,
        frame_tokens: int,
        size: int,
        rung: Rung,
        window_blocks: int = WINDOW_BLOCKS,
    ):
        self._rung, self._sizes = rung, Sizes(config, frame_tokens, size, rung.storage, window_blocks)
        work = [layer_tflop(config, frame_tokens, i, window_blocks) for i in range(config.num_layers)]
        self._matrices, self._attention = _sums([m for m, _ in work]), _sums([a for _, a in work])

    def storage(self, streamed: int) -> Storage:
        """That of a stage with so many streamed layers."""
        return dataclasses.replace(self._rung.storage, streamed=streamed)

    def resident(self, layers: range, steps: int) -> int:
        """Bytes on the device of layers for so many steps, nothing streamed."""
        sizes, count = self._sizes, len(layers)
        kept = count * (sizes.sink + sizes.text)
        weights, rings = sizes.weights(layers, self._rung.storage), sizes.rings(count, steps)
        return weights.device + rings.device + kept + sizes.workspace(count, steps)

    def least_streamed(self, layers: int, need: int) -> int | None:
        """The fewest streamed of so many layers that free `need` bytes, their slots paid for; None where none does."""
        if need <= 0:
            return 0
        count = SLOTS - (-need // self._sizes.travelling)
        return count if self._rung.streams and count <= layers else None

    def pinned_weights(self, layers: range, streamed: int) -> int:
        """Bytes of weights on the host, for all stages with these layers."""
        return self._sizes.weights(layers, self.storage(streamed)).host

    def pinned_rings(self, layers: int, steps: int) -> int:
        """Bytes of keys and values on the host, for one stage with so many layers."""
        return self._sizes.rings(layers, steps).host

    def carried(self, layers: int, streamed: int) -> int:
        """Bytes that a task brings from the host."""
        return self._sizes.carried(layers, self.storage(streamed))

    def work(self, layers: range) -> tuple[float, float]:
        """10^12 operations of a task: in matrices, and in attention."""
        first, stop = layers.start, layers.stop
        return self._matrices[stop] - self._matrices[first], self._attention[stop] - self._attention[first]


def _sums(values: list) -> list:
    return [0, *itertools.accumulate(values)]
