"""What any range of layers takes on one rung, quickly: the planner asks some ten thousand times."""

from __future__ import annotations

import functools
import itertools

from ..config import ModelConfig
from ..storage import streamed_layers
from .bytes import (
    embed_parameters,
    head_parameters,
    layer_bytes,
    prompt_bytes,
    ring_bytes,
    sink_bytes,
    slot_bytes,
    text_bytes,
    workspace_bytes,
)
from .ladder import Rung
from .speed import key_copy_bytes, layer_tflop


class Shelf:
    """The layers of a network on one rung, with sums over every range; agrees with `stage_plan` to the byte.

    Args:
        config: of the network.
        frame_tokens: tokens per latent frame.
        size: bytes per number.
        rung: how things are kept.
    """

    def __init__(self, config: ModelConfig, frame_tokens: int, size: int, rung: Rung):
        self.storage, self.streams, layers = rung.storage, rung.streams, range(config.num_layers)
        s = self.storage
        self._each = [layer_bytes(config, i, size, s) for i in layers]
        self._weights = _sums(self._each)
        self._last = config.num_layers
        self._embed, self._head = embed_parameters(config) * size, head_parameters(config) * size
        self._ring = ring_bytes(config, frame_tokens, size, s.keys)
        self._kept = sink_bytes(config, frame_tokens, size) + text_bytes(config, size)
        self._fixed = workspace_bytes(config, frame_tokens, size, s) + slot_bytes(config, frame_tokens, size, s, 0)
        self._away = prompt_bytes(config, size, s.weights) if s.prompt_weights == "leave" else 0
        self.key_copies = key_copy_bytes(config, frame_tokens, size, s)
        work = [layer_tflop(config, frame_tokens, i) for i in layers]
        self._matrices, self._attention = _sums([m for m, _ in work]), _sums([a for _, a in work])
        self.freed = functools.cache(self._freed)

    def resident(self, first: int, stop: int, steps: int) -> int:
        """Bytes on the device of layers first..stop-1 for so many steps, nothing streamed."""
        ends = (self._embed if first == 0 else 0) + (self._head if stop == self._last else 0)
        rings = 0 if self.storage.keys_home == "host" else self._ring * steps
        return self._weights[stop] - self._weights[first] + ends + (stop - first) * (self._kept + rings) + self._fixed

    def _freed(self, first: int, stop: int, count: int) -> int:
        """Bytes of layers that leave the device when so many are streamed."""
        return sum(self._each[i] for i in streamed_layers(range(first, stop), count))

    def least_streamed(self, first: int, stop: int, need: int) -> int | None:
        """The fewest streamed layers that free `need` bytes, their slots paid for; None where none does."""
        if need <= 0:
            return 0
        if not self.streams:
            return None
        largest = max(self._each[first:stop])
        need += 2 * largest
        if self._weights[stop] - self._weights[first] < need:
            return None
        return next(n for n in range(-(-need // largest), stop - first + 1) if self.freed(first, stop, n) >= need)

    def pinned(self, first: int, stop: int, steps: int, streamed: int) -> tuple[int, int]:
        """Bytes on the host: of weights, and of keys and values."""
        rings = self._ring * steps * (stop - first) if self.storage.keys_home == "host" else 0
        return self.freed(first, stop, streamed) + self._away * (stop - first), rings

    def work(self, first: int, stop: int) -> tuple[float, float]:
        """10^12 operations of a task: in matrices, and in attention."""
        return self._matrices[stop] - self._matrices[first], self._attention[stop] - self._attention[first]


def _sums(values: list) -> list:
    return [0, *itertools.accumulate(values)]
